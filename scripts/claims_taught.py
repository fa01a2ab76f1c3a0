"""Models that were taught by example first, so that they have habits."""

from collections.abc import Callable
from typing import Any

import claims_runs
from compare_tasks import KINDS, STOP, S, T, V
import jax
import numpy as np
import optax

from jaxrl_llm.rollout import collect
from jaxrl_llm.training import ahead, score

# Examples of each kind in a lesson.
_ROWS = 32


def kinds_of(samples: collect.Samples) -> np.ndarray:
  """[N] which of the prompts each completion follows, from 0."""
  kinds = [problem.id for problem in samples.problems]
  return np.repeat(kinds, samples.group_size)


def taught(
  runs: claims_runs.Runs,
  examples: Callable[[np.random.Generator, np.ndarray], np.ndarray],
  *,
  lessons: int = 150,
) -> Any:
  """Parameters after lessons in cross-entropy, by the score itself.

  Args:
    runs: whose untrained models are taught, each with examples of its own.
    examples: (rng, kinds [n]) -> completions [n, T]; those end at their first
      STOP.
    lessons: steps of Adam.
  """
  kinds = np.repeat(np.arange(KINDS), _ROWS)
  scores = score.make_score(runs.model)
  optimizer = optax.adam(1e-2)
  blank = _asked(_ROWS)

  def loss(params, completions, mask):
    rollout = blank.replace(completions=completions, mask=mask)
    return -scores(params, rollout).logprobs.sum() / mask.sum()

  @jax.jit
  @jax.vmap
  def teach(params, opt_state, completions, mask):
    grads = jax.grad(loss)(params, completions, mask)
    changes, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, changes), opt_state

  params, opt_state = runs.params, jax.vmap(optimizer.init)(runs.params)
  for lesson in range(lessons):
    rows = np.stack(
      [
        examples(np.random.default_rng((7, seed, lesson)), kinds)
        for seed in range(runs.setting.seeds)
      ]
    ).astype(np.int32)
    ended = np.cumsum(rows == STOP, axis=2) - (rows == STOP)
    params, opt_state = teach(params, opt_state, rows, ended == 0)
  return params


def first_tokens(runs: claims_runs.Runs, params: Any) -> np.ndarray:
  """[seeds, KINDS, V] exact chances of a completion's first token."""
  every = np.tile(np.arange(V)[:, None], (KINDS, T)).astype(np.int32)
  rollout = _asked(V).replace(
    completions=every, mask=np.ones((len(every), T), bool)
  )
  scores = jax.vmap(score.make_score(runs.model), in_axes=(0, None))
  found = np.asarray(jax.jit(scores)(params, rollout).logprobs)
  return np.exp(found[:, :, 0]).reshape(-1, KINDS, V)


def _asked(rows: int):
  """A rollout of all prompts, `rows` completions each, to be filled in."""
  kinds = np.repeat(np.arange(KINDS), rows)
  prompts = np.stack([kinds + 1] * S, axis=1).astype(np.int32)
  blank = ahead.example_rollout(KINDS, rows, S, T, rewards=0, extras={})
  return blank.replace(prompts=prompts, prompt_mask=prompts > 0)
