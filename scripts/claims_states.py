"""What the policies of claims_runs.py say of fresh samples, and the truth."""

from collections.abc import Mapping
from typing import Any

import claims_runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import engine, sampling
from jaxrl_llm.training import score


def shares(samples) -> Mapping[str, np.ndarray]:
  """The reward of the dense task: the share of a completion that is right."""
  return {"reward": claims_runs.hits(samples).mean(axis=1)}


def rollouts(runs: claims_runs.Runs, params: Any, number: int) -> types.Rollout:
  """One batch of every run, stacked, with rewards by `shares`."""
  group = runs.setting.group_size

  def one(samples):
    out = samples.generation
    count = len(out.mask)
    return types.Rollout(
      prompts=np.repeat(samples.prompts, group, axis=0),
      prompt_mask=np.repeat(samples.prompt_mask, group, axis=0),
      completions=out.completions,
      mask=out.mask,
      old_logprobs=np.zeros(out.mask.shape, np.float32),
      rewards=np.float32(shares(samples)["reward"]),
      weights=np.ones(count, np.float32),
      finish_reason=np.zeros(count, np.int32),
      group_size=group,
    )

  found = [one(samples) for samples in runs.sample(params, number)]
  return jax.tree.map(lambda *x: np.stack(x), *found)


def scores(
  runs: claims_runs.Runs, params: Any, batch: types.Rollout, needs: frozenset
) -> types.Scores:
  """What every run's policy says of its batch."""
  fn = jax.vmap(score.make_score(runs.model, needs=needs))
  return jax.jit(fn, compiler_options=tasks.COMPILER)(params, batch)


def continued_shares(
  runs: claims_runs.Runs,
  params: Any,
  batch: types.Rollout,
  rows: np.ndarray,
  written: np.ndarray,
  *,
  count: int,
) -> np.ndarray:
  """[seeds, n] mean reward of what the policies make of prefixes.

  Args:
    runs: with their model.
    params: of all runs.
    batch: from `rollouts`.
    rows: [seeds, n] whose prefixes.
    written: [seeds, n] tokens of each completion that are kept.
    count: continuations of each.
  """
  generate = engine.make_generate(
    runs.model,
    sampling.make_rule(),
    length=tasks.T,
    group_size=count,
    stop_ids=[tasks.STOP],
    pad_id=tasks.STOP,
  )
  seeds, n = rows.shape
  width = tasks.S + tasks.T
  prompts = np.zeros((seeds, n, width), np.int32)
  mask = np.zeros(prompts.shape, bool)
  before = np.zeros((seeds, n))
  wanted = np.zeros((seeds, n), np.int32)
  for seed, i in np.ndindex(seeds, n):
    row, kept = rows[seed, i], written[seed, i]
    own = batch.completions[seed, row, :kept]
    text = np.concatenate([batch.prompts[seed, row], own])
    prompts[seed, i, width - len(text) :] = text
    mask[seed, i, width - len(text) :] = True
    # The prompt token kind + 1 has the target V - 1 - kind.
    wanted[seed, i] = tasks.V - batch.prompts[seed, row, 0]
    before[seed, i] = (own == wanted[seed, i]).sum()
  run = jax.jit(
    jax.vmap(generate, in_axes=(0, 0, 0, None, 0)),
    compiler_options=tasks.COMPILER,
  )
  keys = jax.vmap(jax.random.key)(jnp.arange(seeds) + 77)
  ids = np.arange(n * count, dtype=np.int32)
  out = jax.device_get(run(params, prompts, mask, ids, keys))
  shape = seeds, n, count, tasks.T
  fits = np.arange(tasks.T) < tasks.T - written[:, :, None, None]
  hits = out.completions.reshape(shape) == wanted[:, :, None, None]
  hits &= out.mask.reshape(shape) & fits
  return (before[:, :, None] + hits.sum(axis=3)).mean(axis=2) / tasks.T
