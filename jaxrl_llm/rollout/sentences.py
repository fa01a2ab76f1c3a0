"""The sentences of a completion, and which of them each token is of.

Host code; see methods/corver.py.
"""

from collections.abc import Iterator
import re
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

Span = tuple[int, int]

_TAGS = tuple(
  re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("think", "answer")
)
_BREAK = re.compile(r"(?<=[.!?])\s+")
# Of the tokens inside a section, the share that must be in a sentence.
ALIGNED = 0.5


class Aligned(NamedTuple):
  """What align finds.

  Attributes:
    of_tokens: [T] index of the sentence of each token, -1 for none.
    texts: of the sentences.
    rate: share of the tokens in a section that are in a sentence.
  """

  of_tokens: Int[np.ndarray, "T"]
  texts: list[str]
  rate: float

  @property
  def usable(self) -> bool:
    """False where too few tokens belong to a sentence to speak of any."""
    return bool(self.texts) and self.rate >= ALIGNED


def sections(text: str) -> list[Span]:
  """What stands in <think> and in <answer>; without either all of it."""
  found = [match.span(1) for tag in _TAGS if (match := tag.search(text))]
  found = [_stripped(text, span) for span in found]
  return [span for span in found if span[1] > span[0]] or [(0, len(text))]


def sentences(text: str, section: Span) -> Iterator[Span]:
  """Cuts a section at the white space behind a full stop, "!" or "?"."""
  start, end = _stripped(text, section)
  breaks = [match.span() for match in _BREAK.finditer(text, start, end)]
  starts = [start, *(behind for _, behind in breaks)]
  ends = [*(before for before, _ in breaks), end]
  yield from (s for s in zip(starts, ends, strict=True) if s[1] > s[0])


def align(of_tokens: Int[np.ndarray, "T 2"], text: str) -> Aligned:
  """Gives each token the sentence that the middle of its characters is in.

  Args:
    of_tokens: spans of the tokens in the text; one without characters is in
      no sentence.
    text: of the completion.
  """
  parts = sections(text)
  found = [span for part in parts for span in sentences(text, part)]
  of_sentences = _which(of_tokens, found)
  inside = (_which(of_tokens, parts) >= 0).sum()
  return Aligned(
    of_tokens=of_sentences,
    texts=[text[start:end] for start, end in found],
    rate=float((of_sentences >= 0).sum() / max(inside, 1)),
  )


def spread(
  aligned: Aligned, rewards: Float[np.ndarray, "S"]
) -> Float[np.ndarray, "T"]:
  """Of each token what its sentence is rewarded; 0 where it has none."""
  if not aligned.usable:
    return np.zeros(len(aligned.of_tokens))
  return np.append(rewards, 0.0)[aligned.of_tokens]


def _which(tokens, spans) -> Int[np.ndarray, "T"]:
  """The first span that the middle of each token is in, or -1."""
  middle = tokens.mean(axis=1)
  found = np.full(len(tokens), -1)
  for index, (start, end) in reversed(list(enumerate(spans))):
    found[(start <= middle) & (middle < end)] = index
  return np.where(tokens[:, 1] > tokens[:, 0], found, -1)


def _stripped(text: str, span: Span) -> Span:
  """Without the white space at both ends."""
  part = text[slice(*span)]
  start = span[0] + len(part) - len(part.lstrip())
  return start, start + len(part.strip())
