"""Which characters of a completion's text each of its tokens wrote.

Rewards and annotations speak of characters, credit is given to tokens. A token
spans the characters of which it wrote at least one byte, so the tokens that
share a character of several bytes all span it. Host code on numpy arrays.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
import numpy as np

if TYPE_CHECKING:  # importing transformers takes seconds
  from jaxrl_llm.data import tokenizers
  from jaxrl_llm.rollout import collect


def completion_spans(
  samples: collect.Samples, tokenizer: tokenizers.Tokenizer
) -> Int[np.ndarray, "N T 2"]:
  """Spans [start, end) in samples.texts of each token.

  Ends never fall. A token that wrote nothing (a special one, or one outside the
  mask) has start = end, the end of the one before it.

  Args:
    samples: of the collector.
    tokenizer: that decoded them.

  Returns:
    int32, characters.

  Raises:
    ValueError: the tokens' bytes are not the text.
  """
  out = samples.generation
  found = np.zeros((*out.mask.shape, 2), np.int32)
  rows = zip(out.completions, out.mask, samples.texts, strict=True)
  for row, (tokens, mask, text) in enumerate(rows):
    pieces = np.zeros(len(mask), object)
    pieces[:] = b""
    written = tokenizer.pieces(tokens[mask].tolist())
    pieces[np.flatnonzero(mask)] = np.fromiter(written, object, len(written))
    spans, seen = piece_spans(pieces)
    if seen != text:
      raise ValueError(
        f"the tokens of completion {row} make {seen[:40]!r}..., its text is"
        f" {text[:40]!r}...; {type(tokenizer).__name__}.pieces does not fit"
        " its decode."
      )
    found[row] = spans
  return found


def piece_spans(
  pieces: Iterable[bytes],
) -> tuple[Int[np.ndarray, "T 2"], str]:
  """Spans of consecutive pieces of UTF-8, and the text that they make.

  What is no UTF-8 is one replacement character a faulty sequence, as decoders
  have it. Linear in the bytes.

  Args:
    pieces: of each token, b"" where it adds nothing.
  """
  decoder = codecs.getincrementaldecoder("utf-8")("replace")
  spans, texts, count, end = [], [], 0, 0
  for piece in pieces:
    if not piece:
      spans.append((end, end))
      continue
    # The last character after one byte is the byte's, begun by it or not.
    start = -1
    for part in (piece[:1], piece[1:]):
      texts.append(decoder.decode(part))
      count += len(texts[-1])
      end = count + _waiting(decoder)
      start = end - 1 if start < 0 else start
    spans.append((start, end))
  texts.append(decoder.decode(b"", final=True))
  return np.asarray(spans, np.int32).reshape(-1, 2), "".join(texts)


def first_token(
  spans: Int[np.ndarray, "T 2"], characters: Sequence[int]
) -> Int[np.ndarray, "n"]:
  """The first token that spans each character; T behind the text.

  Args:
    spans: of one completion.
    characters: positions in its text.
  """
  return np.searchsorted(spans[:, 1], characters, side="right")


def _waiting(decoder: codecs.IncrementalDecoder) -> int:
  """Characters that the bytes make for which the decoder awaits others."""
  return len(decoder.getstate()[0].decode("utf-8", "replace"))
