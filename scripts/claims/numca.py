"""Numca: how far its values of states are from those that they have."""

import claims_frame as frame
import compare_runs as runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import segments
from jaxrl_llm.rollout import engine, number_states, sampling

CLAIM = (
  "The mean reward of completions that have written the same numbers is nearer"
  " to the value of a state than the mean reward of the group."
)
SECONDS = 60
# Batches that the table has seen, states compared, continuations of each.
VISITS, STATES, CONTINUATIONS = (1, 8), 32, 64


def check(seeds: int) -> frame.Finding:
  """Policies that are being trained; values by continuing their prefixes."""
  arena = runs.Arena(runs.Setting(seeds=seeds, steps=8))
  state, *_ = arena.learn(runs.Prepared(arena, "dr_grpo"))
  continued = _continuation(arena.model)
  rows = []
  for visits in VISITS:
    found = [_visited(arena, state.params, run, visits) for run in _runs(arena)]
    truth = _truth(arena, state.params, found, continued)
    errors = {
      name: [
        np.abs(one[name] - of_run).mean()
        for one, of_run in zip(found, truth, strict=True)
      ]
      for name in ("numca", "group", "prompt")
    }
    rows.append({"batches seen": visits} | errors)
  return _finding(rows)


def _finding(rows):
  better = [frame.differs(row["group"], row["numca"]) for row in rows]
  one, many = rows
  text = (
    "Mean absolute error against"
    f" {CONTINUATIONS} continuations of each state: {frame.band(one['numca'])}"
    f" after one batch, {frame.band(many['numca'])} after"
    f" {many['batches seen']}, where the mean of the group has"
    f" {frame.band(many['group'])} and the mean of all that the prompt was"
    f" rewarded {frame.band(many['prompt'])}."
  )
  table = [
    {k: v if isinstance(v, int) else frame.band(v) for k, v in row.items()}
    for row in rows
  ]
  return frame.Finding(shows=better[-1], text=text, rows=table)


def _runs(arena) -> range:
  """Those of the sparse task."""
  return range(arena.setting.seeds, arena.setting.runs)


def _visited(arena, params, run, visits) -> dict[str, np.ndarray]:
  """Some states of the last of several batches, and three guesses of each."""
  plan, memory = number_states.plan(threshold=0), None
  memory, past = plan.init(), {}
  for index in range(visits):
    sampler = arena.rounds(params, 1000 + index).sampler(run)
    found, memory, _ = plan.gather(sampler, memory)
    for row, reward in enumerate(found.rewards):
      past.setdefault(_kind(found, row), []).append(reward)
  out, ends = found.samples.generation, found.extras["segment_ends"]
  values = -segments.segment_advantages(
    jnp.zeros(len(ends)),
    jnp.asarray(ends),
    jnp.asarray(found.extras["segment_deltas"]),
    jnp.asarray(out.mask),
  )
  begins = np.roll(ends == number_states.END, 1, axis=1)
  begins[:, 0] = True
  rows, places = np.nonzero(begins & out.mask)
  picked = np.random.default_rng(run).permutation(len(rows))[:STATES]
  rows, places = rows[picked], places[picked]
  means = found.rewards.reshape(-1, found.group_size).mean(axis=1)
  return {
    "numca": np.asarray(values)[rows, places],
    "group": means[rows // found.group_size],
    "prompt": np.array([np.mean(past[_kind(found, row)]) for row in rows]),
    "kinds": np.array([_kind(found, row) for row in rows]),
    "tokens": out.completions[rows],
    "places": places,
  }


def _kind(found, row) -> int:
  return found.samples.problems[row // found.group_size].id


def _continuation(model):
  """Completions of prompts of any length, of several runs at once."""
  generate = engine.make_generate(
    model,
    sampling.make_rule(),
    length=tasks.T,
    group_size=CONTINUATIONS,
    stop_ids=[tasks.STOP],
    pad_id=tasks.STOP,
  )
  over_runs = jax.vmap(generate, in_axes=(0, 0, 0, None, 0))
  return jax.jit(over_runs, compiler_options=tasks.COMPILER)


def _truth(arena, params, found, continued) -> np.ndarray:
  """[runs, STATES] mean reward of what the policies make of the prefixes."""
  runs_ = np.asarray(_runs(arena))
  width, count = tasks.S + tasks.T, len(runs_)
  prompts = np.zeros((count, STATES, width), np.int32)
  mask = np.zeros(prompts.shape, bool)
  for run, one in enumerate(found):
    for index, place in enumerate(one["places"]):
      text = [one["kinds"][index] + 1] * tasks.S
      text += one["tokens"][index, :place].tolist()
      prompts[run, index, width - len(text) :] = text
      mask[run, index, width - len(text) :] = True
  ids = np.arange(STATES * CONTINUATIONS, dtype=np.int32)
  keys = jax.vmap(jax.random.key)(jnp.asarray(runs_ + 77))
  own = jax.tree.map(lambda x: x[runs_], tasks.rounded(params))
  out = jax.device_get(continued(own, prompts, mask, ids, keys))
  places = np.stack([one["places"] for one in found])
  targets = np.stack([tasks.V - 1 - one["kinds"] for one in found])
  tokens = np.stack([one["tokens"] for one in found])
  written = np.arange(tasks.T) < places[:, :, None]
  before = ((tokens == targets[:, :, None]) & written).sum(axis=2)
  shape = count, STATES, CONTINUATIONS, tasks.T
  fits = np.arange(tasks.T) < tasks.T - places[:, :, None, None]
  hits = out.completions.reshape(shape) == targets[:, :, None, None]
  hits &= out.mask.reshape(shape) & fits
  after = hits.sum(axis=3)
  return (before[:, :, None] + after >= 2).mean(axis=2)
