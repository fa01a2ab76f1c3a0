"""Plans: from which samples a step is made; see types.Plan.

A plan asks for rounds of samples and returns B groups. Plans nest: a round of
the outer one is what the inner one gathers. Everything is host code on numpy
arrays, and what a plan remembers is saved with the checkpoint.

Noise stays a function of (seed, step, sample id, position): the rows of a
second round in a step are numbered on from those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rewards import scored as scoring
from jaxrl_llm.rollout import groups as grouping


class Sampler:
  """What a plan may ask for within one step."""

  def __init__(
    self,
    *,
    step: int,
    batch_size: int,
    problems: Callable[[], Sequence[Any]],
    collect: Callable[[Sequence[Any], int], Any],
    greedy: Callable[[Sequence[Any]], Any],
    score: Callable[[Any], Any],
    version: int | None = None,
    tokenizer: Any = None,
  ):
    """One sampler a step.

    Args:
      step: number of the step that is to train on what is gathered.
      batch_size: B, groups that the step needs.
      problems: () -> the next B problems of the data.
      collect: (problems, id of the first row) -> collect.Samples, G each.
      greedy: (problems) -> collect.Samples, one greedy completion each.
      score: (samples) -> rewards.scored.Scored.
      version: steps that the sampling policy was trained; None means `step`,
        the policy that will be trained.
      tokenizer: of the model, for plans that read texts.
    """
    self.step = step
    self.tokenizer = tokenizer
    self.version = step if version is None else version
    self.batch_size = batch_size
    self._problems, self._collect = problems, collect
    self._greedy, self._score = greedy, score
    self._rounds = []
    self._rows = 0

  def sample(self) -> grouping.Groups:
    """One round: the next problems, their completions, their rewards."""
    samples = self._collect(self._problems(), self._rows)
    scored = self._score(samples)
    self._rows += len(samples.texts)
    self._rounds.append((samples, scored))
    return grouping.fresh(samples, scored, version=self.version)

  def greedy_rewards(self, problems: Sequence[Any]) -> np.ndarray:
    """[len(problems)] rewards of greedy completions; NaN if unscorable."""
    return self._score(self._greedy(problems)).rewards

  def rewards_of(
    self, samples: Any, rows: Sequence[int], texts: Sequence[str]
  ) -> np.ndarray:
    """[len(rows)] rewards of other texts in the place of completions.

    They are not among what was seen. NaN where one cannot be scored.

    Args:
      samples: of the collector.
      rows: whose prompts and answers the texts go with.
      texts: for rewards that read texts.
    """
    rows = np.asarray(rows, np.int64)
    prompts = rows // samples.group_size
    changed = dataclasses.replace(
      samples,
      problems=[samples.problems[i] for i in prompts],
      prompts=samples.prompts[prompts],
      prompt_mask=samples.prompt_mask[prompts],
      generation=jax.tree.map(lambda x: x[rows], samples.generation),
      prompt_texts=[samples.prompt_texts[i] for i in prompts],
      texts=list(texts),
    )
    return self._score(changed).rewards

  def seen(self) -> tuple[Any, Any]:
    """(samples, scored) of all rounds: what the policy does, unfiltered."""
    samples, scored = zip(*self._rounds, strict=True)
    return grouping.join_samples(samples), scoring.join(scored)


def one_round() -> types.Plan:
  """Trains on the samples of one round as they come."""
  return types.Plan(
    init=dict, gather=lambda sampler, state: (sampler.sample(), state, {})
  )


def greedy_baseline(inner: types.Plan | None = None) -> types.Plan:
  """Adds one greedy completion a prompt, whose reward is a baseline (ReMax).

  It is scored as the others are, a truncated one too, and never trained on.
  Where it cannot be scored there is no baseline: the prompt's rows get weight
  0. Writes extras["greedy_rewards"] [N], equal in each group.

  Args:
    inner: gathers the groups; None takes one round.

  References:
    Li et al. 2023, arXiv:2310.10505.
  """
  inner = inner or one_round()

  def gather(sampler, state):
    found, state, metrics = inner.gather(sampler, state)
    rewards = sampler.greedy_rewards(found.samples.problems)
    known = np.isfinite(rewards)
    rows = np.where(known, rewards, 0.0).repeat(found.group_size)
    found = found.replace(
      weights=found.weights * known.repeat(found.group_size),
      extras=found.extras | {"greedy_rewards": rows.astype(np.float32)},
    )
    mean = float(rewards[known].mean()) if known.any() else 0.0
    return found, state, metrics | {"plan/greedy_reward": mean}

  extras = {**inner.extras, "greedy_rewards": types.Extra()}
  return types.Plan(inner.init, gather, extras, inner.check)


def annotated(
  annotate: Callable[..., tuple[dict[str, np.ndarray], Any, dict[str, float]]],
  extras: Mapping[str, types.Extra],
  *,
  init: Callable[[], dict[str, Any]] = dict,
  inner: types.Plan | None = None,
  check: Callable[[], Any] = lambda: None,
) -> types.Plan:
  """Adds what is read from the texts of completions to Rollout.extras.

  State: "annotated", what `annotate` remembers from step to step (a table by
  prompt id, say); "inner".

  Args:
    annotate: (groups, state, tokenizer) -> (extras, state, metrics), host
      code; groups.samples has the texts, the tokens and the problems, whose
      ids are the prompts' own. Arrays are as `extras` says.
    extras: names, shapes and dtypes of the arrays.
    init: () -> the first state: JSON values and numpy arrays, nested.
    inner: gathers the groups; None takes one round.
    check: see types.Plan.
  """
  inner = inner or one_round()

  def gather(sampler, state):
    found, below, metrics = inner.gather(sampler, state["inner"])
    arrays, own, more = annotate(found, state["annotated"], sampler.tokenizer)
    found = found.replace(extras=found.extras | arrays)
    return found, {"annotated": own, "inner": below}, metrics | more

  return types.Plan(
    init=lambda: {"annotated": init(), "inner": inner.init()},
    gather=gather,
    extras={**inner.extras, **extras},
    check=lambda: (inner.check(), check()),
  )
