"""The numbers that a completion has written, as the state it is in.

A state is the set of distinct numbers so far. What a prompt's completions were
rewarded after they passed through a state is its value, kept in a table over
the whole run. Host code; see methods/numca.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import re
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import plans, spans

# {state: [how often it was passed through, sum of the rewards that followed]}
Table = dict[str, list[float]]

INSIDE, END, LAST = 0, 1, 2
EXTRAS = {
  "segment_ends": types.Extra(("N", "T"), np.int32),
  "segment_deltas": types.Extra(("N", "T")),
}
_NUMBER = re.compile(r"\d+")


def numbers(text: str) -> tuple[list[str], list[int]]:
  """Runs of digits in order and where each begins, without the last one.

  The last is normally the answer itself. 3.14 is two numbers, -2 is 2, and 07
  is another number than 7.
  """
  found = list(_NUMBER.finditer(text))[:-1]
  return [match[0] for match in found], [match.start() for match in found]


def states(written: Sequence[str]) -> Iterator[str]:
  """The states that numbers pass through: the empty one, then one a number.

  A number that was there before leads to the state that it is in. Names are
  digests, the same for the same set in any order, made in linear time.
  """
  seen, total = set(), 0
  yield _name(total)
  for number in written:
    if number not in seen:
      seen.add(number)
      digest = hashlib.blake2b(number.encode(), digest_size=8).digest()
      total = (total + int.from_bytes(digest)) % 2**64
    yield _name(total)


def record(table: Table, written: Sequence[str], reward: float) -> None:
  """Counts a completion in each of its states, once, with its reward."""
  for state in dict.fromkeys(states(written)):
    count, total = table.get(state, (0, 0.0))
    table[state] = [count + 1, total + reward]


def value(table: Table, state: str) -> float:
  """Mean reward of what passed through a state; 0 if nothing has."""
  count, total = table.get(state, (0, 0.0))
  return total / count if count else 0.0


def merge_close(ends: Sequence[int], threshold: int) -> list[int]:
  """From the last end backwards: one less than `threshold` before the next
  becomes that one.
  """
  merged = list(ends)
  for i in reversed(range(len(merged) - 1)):
    if merged[i + 1] - merged[i] < threshold:
      merged[i] = merged[i + 1]
  return merged


def segments(
  table: Table,
  written: Sequence[str],
  ends: Sequence[int],
  length: int,
  *,
  threshold: int = 50,
) -> tuple[Int[np.ndarray, "T"], Float[np.ndarray, "T"]]:
  """Cuts a completion where it reaches a new state.

    delta of a segment = V(state it ends in) - V(state it begins in)
    delta of the last  = R - V(state it begins in)

  New numbers whose ends were merged lead over in one segment. One without
  tokens has no delta; the state it ends in is where the next one begins.

  Args:
    table: of the prompt.
    written: the numbers, as numbers() gives them.
    ends: of each, the token behind the one that it begins in.
    length: T, tokens of the completion.
    threshold: tokens; segments between ends closer than this are merged.

  Returns:
    What each token is (INSIDE, END of a segment, LAST of the last one), and
    the deltas at these ends, without the R of the last one.
  """
  kinds, deltas = np.zeros(length, np.int32), np.zeros(length)
  start, *after = states(written)
  reached = {}  # end -> the state there: several new numbers, the last one's
  known = start
  for end, state in zip(merge_close(ends, threshold), after, strict=True):
    if state != known:
      reached[end] = known = state
  last = 0
  for end, state in reached.items():
    end = min(end, length)
    if end > last:
      kinds[end - 1] = END
      deltas[end - 1] = value(table, state) - value(table, start)
      last = end
    start = state
  if length > last:
    kinds[-1], deltas[-1] = LAST, -value(table, start)
  return kinds, deltas


def plan(
  *,
  threshold: int = 50,
  max_states: int = 10_000,
  inner: types.Plan | None = None,
) -> types.Plan:
  """Adds the segments of each completion, valued by the table of its prompt.

  All rows of the batch that count are in the table before any is valued.
  Remembers {prompt id: Table}.

  Args:
    threshold: see segments().
    max_states: of a prompt; beyond it those that were passed through least
      are forgotten when the step is done.
    inner: gathers the groups; None takes one round.
  """

  def annotate(found, remembered, tokenizer):
    tables = _recorded(found, remembered)
    extras = _valued(found, tables, tokenizer, threshold)
    kept = {key: _most_visited(t, max_states) for key, t in tables.items()}
    remembered = {**remembered, **kept}
    metrics = {
      "plan/segments": float((extras["segment_ends"] > 0).sum(axis=1).mean()),
      "plan/states": float(sum(map(len, remembered.values()))),
    }
    return extras, remembered, metrics

  return plans.annotated(annotate, EXTRAS, inner=inner)


def _valued(found, tables, tokenizer, threshold) -> dict[str, np.ndarray]:
  """The extras of a batch."""
  mask = found.samples.generation.mask
  sizes = dict(zip("NT", mask.shape, strict=True))
  ends, deltas = (extra.zeros(**sizes) for extra in EXTRAS.values())
  of_tokens = spans.completion_spans(found.samples, tokenizer)
  for row, text in enumerate(found.samples.texts):
    written, starts = numbers(text)
    own = np.flatnonzero(mask[row])
    behind = 1 + spans.first_token(of_tokens[row, own], starts)
    ends[row, own], deltas[row, own] = segments(
      tables[_prompt(found, row)],
      written,
      behind.tolist(),
      len(own),
      threshold=threshold,
    )
  return dict(zip(EXTRAS, (ends, deltas), strict=True))


def _recorded(found: Any, remembered: Mapping[str, Table]) -> dict[str, Table]:
  """Tables of the prompts of a batch, with its rows; none is changed."""
  rows = range(len(found.rewards))
  prompts = {_prompt(found, row) for row in rows}
  tables = {key: dict(remembered.get(key, {})) for key in sorted(prompts)}
  for row in rows:
    reward = float(found.rewards[row])
    if np.isfinite(reward) and found.weights[row] > 0:
      written, _ = numbers(found.samples.texts[row])
      record(tables[_prompt(found, row)], written, reward)
  return tables


def _prompt(found: Any, row: int) -> str:
  return str(found.samples.problems[row // found.group_size].id)


def _most_visited(table: Table, most: int) -> Table:
  if len(table) <= most:
    return table
  first = sorted(table, key=lambda state: -table[state][0])[:most]
  return {state: table[state] for state in first}


def _name(total: int) -> str:
  return f"{total:016x}"
