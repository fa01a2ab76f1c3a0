"""Batches in which prompts that are always solved have a share that adapts.

Host code; see methods/decs.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import dynamic_sampling, plans
from jaxrl_llm.rollout import groups as grouping


def next_kappa(
  kappa: float,
  ratio: float,
  before: float,
  *,
  rate: float = 0.2,
  low: float = 0.0,
  high: float = 0.95,
) -> float:
  """Moves the share of easy prompts with the share of needed reasoning.

    kappa <- clip(kappa + rate (ratio - before), low, high)

  Args:
    kappa: share of prompts that all completions solve.
    ratio: mean, over completions, of how far into its chunks the answer is.
    before: that of the step before; 0 leaves kappa as it is.
    rate: per step.
    low: least kappa; -inf does not clip (the code).
    high: most, below 1.

  References:
    Jiang et al. 2025, arXiv:2509.25827.
  """
  if before:
    kappa += rate * (ratio - before)
  return min(max(kappa, low), high)


def admitted(kappa: float, mixed: int, easy: int) -> int:
  """How many of the easy prompts may join `mixed` others.

  min(easy, floor(kappa mixed / (1 - kappa))),  0 if kappa <= 0
  """
  if kappa <= 0:
    return 0
  return min(easy, int(kappa * mixed / (1.0 - kappa)))


def plan(
  label: Callable[
    [Any, Any], tuple[dict[str, np.ndarray], list[float], dict[str, float]]
  ],
  extras: dict[str, types.Extra],
  *,
  rate: float = 0.2,
  low: float = 0.0,
  high: float = 0.95,
  max_rounds: int = 10,
  seed: int = 0,
  inner: types.Plan | None = None,
  check: Callable[[], Any] = lambda: None,
) -> types.Plan:
  """Fills a batch with prompts that some completions solve, and some easy ones.

  Rounds of B prompts are sampled until B are kept: all whose rewards differ,
  none that is never solved, and of those always solved as many, at random, as
  admitted() says. Its `mixed` are those found since easy ones were last let in.
  What is missing after max_rounds is filled with rows of weight 0, what is too
  much is thrown away.

  Remembers kappa, 0 at first, and the ratio of the last step, 1/2.

  Args:
    label: (groups, sampler) -> (extras of the batch, its ratios, metrics).
    extras: of the label.
    rate: of next_kappa.
    low: of next_kappa.
    high: of next_kappa.
    max_rounds: rounds in a step.
    seed: of what is let in.
    inner: gathers a round; None takes one round of B problems.
    check: see types.Plan.
  """
  inner = inner or plans.one_round()

  def gather(sampler, state):
    rng = np.random.default_rng((seed, sampler.step))
    kappa, below = state["kappa"], state["inner"]
    kept, dropped, easy_kept, mixed, rounds = [], [], 0, 0, 0
    while sum(map(len, kept)) < sampler.batch_size and rounds < max_rounds:
      found, below, _ = inner.gather(sampler, below)
      rounds += 1
      hard, easy = _kinds(found)
      mixed += int(hard.sum())
      count = admitted(kappa, mixed, int(easy.sum()))
      if admitted(kappa, mixed, 1):
        mixed = 0
      chosen = rng.permutation(np.flatnonzero(easy))[:count]
      easy_kept += count
      keep = rng.permutation([*np.flatnonzero(hard), *chosen])
      rest = np.setdiff1d(np.arange(len(found)), keep)
      kept.append(grouping.take(found, keep))
      dropped.append(grouping.take(found, rest))
      kept, dropped = ([p for p in x if p] for x in (kept, dropped))
    batch, _ = dynamic_sampling.exactly(kept, dropped, sampler.batch_size)
    missing = max(sampler.batch_size - sum(map(len, kept)), 0)
    arrays, ratios, metrics = label(batch, sampler)
    ratio = float(np.mean(ratios)) if ratios else state["ratio"]
    metrics |= {
      "plan/rounds": float(rounds),
      "plan/kappa": kappa,
      "plan/easy": float(easy_kept),
      "plan/padded": float(missing),
      "plan/needed": ratio,
    }
    moved = next_kappa(
      kappa, ratio, state["ratio"], rate=rate, low=low, high=high
    )
    state = {"kappa": moved, "ratio": ratio, "inner": below}
    batch = batch.replace(extras=batch.extras | arrays)
    return batch, state, metrics

  return types.Plan(
    init=lambda: {"kappa": 0.0, "ratio": 0.5, "inner": inner.init()},
    gather=gather,
    extras={**inner.extras, **extras},
    check=lambda: (inner.check(), check()),
  )


def without(
  label: Callable[
    [Any, Any], tuple[dict[str, np.ndarray], list[float], dict[str, float]]
  ],
  extras: dict[str, types.Extra],
  *,
  check: Callable[[], Any] = lambda: None,
) -> types.Plan:
  """The labels alone: one round, every prompt of it kept.

  Args:
    label: (groups, sampler) -> (extras of the batch, its ratios, metrics).
    extras: of the label.
    check: see types.Plan.
  """

  def gather(sampler, state):
    found = sampler.sample()
    arrays, ratios, metrics = label(found, sampler)
    if ratios:
      metrics |= {"plan/needed": float(np.mean(ratios))}
    return found.replace(extras=found.extras | arrays), state, metrics

  return types.Plan(init=dict, gather=gather, extras=extras, check=check)


def check(rate: float, low: float, high: float) -> None:
  """Raises ValueError for what next_kappa cannot take."""
  if not 0 <= rate < float("inf"):
    raise ValueError(f"kappa_lr must be 0 or more and finite, got {rate}.")
  if not low <= 0:
    raise ValueError(f"kappa_min must be 0 or less, got {low}.")
  if not 0 <= high < 1:
    raise ValueError(f"kappa_max must be in [0, 1), got {high}.")


def check_rounds(max_rounds: int, seed: int) -> None:
  """Raises ValueError for what plan cannot take."""
  if max_rounds < 1:
    raise ValueError(f"max_rounds must be at least 1, got {max_rounds}.")
  if seed < 0:
    raise ValueError(f"seed must be 0 or more, got {seed}.")


def _kinds(found) -> tuple[np.ndarray, np.ndarray]:
  """Which groups differ in reward, and which are equal and right."""
  known = np.isfinite(found.rewards) & (found.weights > 0)
  values = np.where(known, found.rewards, np.nan)
  values = values.reshape(-1, found.group_size)
  differ = dynamic_sampling.has_signal(values)
  right = (np.nan_to_num(values) > 0).any(axis=1)
  return differ, right & ~differ
