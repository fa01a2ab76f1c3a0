"""Hista: how far its values of prefixes are from those that they have."""

import claims_frame as frame
import claims_runs
import claims_states
import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import state_values

CLAIM = (
  "The value of a prefix from its nearest neighbours in hidden space is nearer"
  " to the truth than the mean reward of the group."
)
SECONDS = 60
PREFIXES, CONTINUATIONS = 48, 64
_NEEDS = frozenset({"token_hidden", "prompt_hidden"})
# At the size of the task: a node at each token, prefixes of a few states.
_KNOBS = {"window": 1, "max_k": 32, "min_k": 6, "min_d": 1.0}


def check(seeds: int) -> frame.Finding:
  """Policies half way through their training; values by continuing."""
  runs = claims_runs.Runs(seeds, steps=12, group_size=16, prompts=8)
  trained = runs.train(methods.DrGrpo(), claims_states.shares)
  batch = claims_states.rollouts(runs, trained.params, 1 << 19)
  found = claims_states.scores(runs, trained.params, batch, _NEEDS)
  rows, written = _prefixes(batch)
  truth = claims_states.continued_shares(
    runs, trained.params, batch, rows, written, count=CONTINUATIONS
  )
  guesses = {
    "Hista": _values(batch, found),
    "without the row's own nodes": _values(batch, found, exclude_self=True),
    "group mean": _group_means(batch),
  }
  table = []
  for name, of_tokens in guesses.items():
    guess = np.stack(
      [v[r, w - 1] for v, r, w in zip(of_tokens, rows, written, strict=True)]
    )
    errors = np.abs(guess - truth)
    early = written <= 4
    table.append(
      {
        "value": name,
        "all": errors.mean(axis=1),
        "first half": _mean(errors, early),
        "second half": _mean(errors, ~early),
      }
    )
  return _finding(table)


def _finding(table):
  hista, others, mean = table
  text = (
    f"Mean absolute error against {CONTINUATIONS} continuations of each prefix:"
    f" {frame.band(hista['all'])}, without the row's own nodes"
    f" {frame.band(others['all'])}, of the group's mean"
    f" {frame.band(mean['all'])}."
  )
  rows = [
    {k: v if isinstance(v, str) else frame.band(v) for k, v in row.items()}
    for row in table
  ]
  return frame.Finding(
    shows=frame.differs(mean["all"], hista["all"]), text=text, rows=rows
  )


def _mean(errors, where):
  return (errors * where).sum(axis=1) / where.sum(axis=1)


def _prefixes(batch):
  """[seeds, PREFIXES] rows, and tokens that are written in each, not all."""
  rows, written = [], []
  for seed, mask in enumerate(batch.mask):
    lengths = mask.sum(axis=1)
    rng = np.random.default_rng(seed)
    picked = rng.permutation(np.flatnonzero(lengths > 2))[:PREFIXES]
    rows.append(picked)
    written.append(rng.integers(2, lengths[picked]))
  return np.stack(rows), np.stack(written)


def _values(batch, found, **knobs) -> np.ndarray:
  """[seeds, N, T] the value of the prefix that ends with each token."""

  def one(batch, found):
    masks = batch.prompt_mask, batch.mask
    prompt, own = state_values.lengths(*masks)
    nodes = state_values.state_nodes(
      prompt, own, min_interval=1, length=batch.mask.shape[1]
    )
    x = state_values.smoothed_states(
      found.prompt_hidden, found.token_hidden, *masks, window=1
    )
    return state_values.state_values(
      x,
      nodes,
      batch.rewards,
      group_size=batch.group_size,
      **(_KNOBS | knobs),
    )[:, : batch.mask.shape[1]]

  return np.asarray(jax.jit(jax.vmap(one))(batch, found))


def _group_means(batch) -> np.ndarray:
  seeds, count = batch.rewards.shape
  means = batch.rewards.reshape(seeds, -1, batch.group_size).mean(axis=2)
  means = np.repeat(means, batch.group_size, axis=1)
  return np.broadcast_to(means[:, :, None], batch.mask.shape)
