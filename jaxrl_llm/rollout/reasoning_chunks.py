"""Reasoning cut at words of doubt, and the first part that has the answer.

Host code; see methods/decs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import re
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rewards import functions
from jaxrl_llm.rollout import spans

Span = tuple[int, int]
# (prompts, segments, answers) -> whether each segment presents the answer
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[bool]]

END_OF_THINKING = "</think>"
JUDGES = ("answer", "reward")
NONE: Span = (-1, -1)


EXTRAS = {
  "redundant_start": types.Extra(dtype=np.int32),
  "redundant_end": types.Extra(dtype=np.int32),
}


class Labels(NamedTuple):
  """What label finds.

  Attributes:
    redundant: [N, 2] tokens [start, end) behind the first chunk with the
      answer, or (-1, -1).
    ratios: of the rows that have such a chunk: its number over all.
  """

  redundant: Int[np.ndarray, "N 2"]
  ratios: list[float]


def chunks(
  text: str, words: Sequence[str], *, merge: bool = True
) -> list[Span]:
  """Cuts a text before each of `words`, up to the end of its thinking.

  Args:
    text: of a completion.
    words: whole words, their case as written.
    merge: joins a chunk without a line break inside it to the next one.

  Returns:
    Characters [start, end) of neighbours; none for an empty text.
  """
  end = text.find(END_OF_THINKING)
  end = len(text) if end < 0 else end
  pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)"
  cuts = [match.start() for match in re.finditer(pattern, text[:end])]
  bounds = sorted({0, *cuts, end})
  found, start = [], 0
  for left, right in zip(bounds, bounds[1:], strict=False):
    whole = not merge or "\n" in text[left:right].strip()
    if whole or right == end:
      found.append((start, right))
      start = right
  return found


def contains_answer(segment: str, answer: str) -> bool:
  """Whether the answer stands in a text, not as part of a word or number."""
  segment, answer = _plain(segment), _plain(answer)
  pattern = rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)"
  return bool(answer) and re.search(pattern, segment) is not None


def judge(name: str, sampler: Any, samples: Any, rows: Sequence[int]) -> Judge:
  """The judge of that name for segments of some rows.

  Args:
    name: "answer", contains_answer; "reward", the run's reward of the segment
      as if it were the completion, above 0; or "file.py:function", a user's
      own with the arguments of Judge.
    sampler: of the step, for "reward".
    samples: that the rows are of.
    rows: of each segment.
  """
  if name == "answer":
    return lambda prompts, segments, answers: [
      contains_answer(*pair) for pair in zip(segments, answers, strict=True)
    ]
  if name == "reward":
    return lambda prompts, segments, answers: (
      sampler.rewards_of(samples, rows, segments) > 0
    )
  return functions.load(
    name, kind="judge", takes="(prompts, segments, answers)"
  )


def check_judge(name: str) -> None:
  """Raises ValueError unless the name can be a judge's."""
  if name not in JUDGES and ":" not in name:
    raise ValueError(
      f"judge must be {', '.join(JUDGES)} or file.py:function; got {name!r}."
    )


def look_for(name: str) -> None:
  """Raises ValueError or FileNotFoundError where a judge's file is missing."""
  if name not in JUDGES:
    functions.split(name, "judge")


def as_extras(labels: Labels) -> dict[str, np.ndarray]:
  """The arrays that EXTRAS names."""
  return dict(zip(EXTRAS, labels.redundant.T.copy(), strict=True))


def label(
  found: Any, sampler: Any, *, words: Sequence[str], name: str, merge: bool
) -> Labels:
  """Finds what is redundant in the right completions of a batch.

  All their chunks are judged in one call. A stop token is never redundant, nor
  is what stands behind the thinking.

  Args:
    found: groups; a completion is right if its reward is above 0.
    sampler: of the step.
    words: see chunks().
    name: see judge().
    merge: see chunks().
  """
  samples, size = found.samples, found.group_size
  parts = {
    row: chunks(samples.texts[row], words, merge=merge)
    for row in np.flatnonzero(found.rewards > 0).tolist()
  }
  rows = [row for row, spans_ in parts.items() for _ in spans_]
  segments = [samples.texts[r][a:b] for r in parts for a, b in parts[r]]
  redundant = np.tile(np.array(NONE, np.int32), (len(found.rewards), 1))
  if not rows:
    return Labels(redundant, [])
  says = judge(name, sampler, samples, rows)(
    [samples.prompt_texts[row // size] for row in rows],
    segments,
    [samples.problems[row // size].answer for row in rows],
  )
  verdicts, ratios = iter(says), []
  of_tokens = spans.completion_spans(samples, sampler.tokenizer)
  for row, own in parts.items():
    yes = [bool(next(verdicts)) for _ in own]
    if any(yes):
      first = yes.index(True)
      ratios.append((first + 1) / len(own))
      redundant[row] = _tokens(of_tokens[row], own[first][1], own[-1][1])
  return Labels(redundant, ratios)


def _tokens(of_tokens, start: int, end: int) -> Span:
  """The tokens that wrote these characters; a shared one is the first's."""
  if start >= end:
    return NONE
  first, last = spans.first_token(of_tokens, [start, end - 1])
  return int(first), int(last) + 1


def _plain(text: str) -> str:
  """Without the commas of thousands."""
  return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
