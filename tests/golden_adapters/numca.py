"""Numbers, tables and segment advantages of the official code.

A token is a character, so a number ends the segment behind its first digit.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import segments
from jaxrl_llm.rollout import number_states


def adapt(case, dtype):
  texts = case.inputs["texts"]
  rewards = np.atleast_1d(case.inputs["rewards"])
  parsed = [number_states.numbers(text) for text in texts]
  table = {}
  for (written, _), reward in zip(parsed, rewards, strict=True):
    number_states.record(table, written, float(reward))
  outputs = {
    "numbers": lambda: [written for written, _ in parsed],
    "char_positions": lambda: [starts for _, starts in parsed],
    "table": lambda: _table(table, parsed),
    "advantages_run_length": lambda: [
      _runs(row) for row in _advantages(case, dtype, table, parsed)
    ],
    "advantages": lambda: _advantages(case, dtype, table, parsed),
  }
  return {name: outputs[name]() for name in case.outputs}


def _table(table, parsed):
  """Records as the official table prints them."""
  sets = {
    frozenset(written[:count])
    for written, _ in parsed
    for count in range(len(written) + 1)
  }
  rows = []
  for numbers in sorted(sets, key=lambda s: (len(s), sorted(s))):
    *_, state = number_states.states(sorted(numbers))
    count, total = table[state]
    rows.append({"state": sorted(numbers), "count": count, "reward_sum": total})
  assert len(rows) == len(table)
  return rows


def _advantages(case, dtype, table, parsed):
  params = case.params
  found = []
  for text, reward, (written, starts) in zip(
    case.inputs["texts"], case.inputs["rewards"], parsed, strict=True
  ):
    kinds, deltas = number_states.segments(
      table,
      written,
      [start + 1 for start in starts],
      len(text),
      threshold=params.get("merge_threshold", 50),
    )
    row = segments.segment_advantages(
      jnp.asarray([reward], dtype),
      jnp.asarray(kinds)[None],
      jnp.asarray(deltas, dtype)[None],
      jnp.ones((1, len(text)), bool),
      lam=params.get("gae_lambda", 1.0),
    )
    found.append(np.asarray(row[0]))
  return found


def _runs(row):
  """[value, how often] of neighbours that are equal but for rounding."""
  digits = 5 if row.dtype == np.float32 else 12
  groups = itertools.groupby(row, key=lambda value: round(float(value), digits))
  runs = [list(group) for _, group in groups]
  return [[float(run[0]), len(run)] for run in runs]
