"""What each token adds to a decoded text, in bytes.

A decoder of the library tokenizers takes all tokens and gives one text; which
part of it is whose is lost. Here its steps are done token by token. They are
those of byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) and of SentencePiece in
either of its forms (Llama 2, Mistral, Gemma).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import json
import re
from typing import Any

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNREADABLE = "\N{REPLACEMENT CHARACTER}".encode()

Step = Callable[[list[bytes]], list[bytes]]


def reader(
  backend: tokenizers.Tokenizer,
) -> Callable[[Iterable[int]], list[bytes]]:
  """A function from ids to the bytes that each of them adds.

    b"".join(read(ids)).decode("utf-8", "replace")  ==  the decoded text

  Special tokens and ids that are none add b"".

  Args:
    backend: a fast tokenizer.

  Raises:
    ValueError: its decoder has a step that is not known here.
  """
  added = backend.get_added_tokens_decoder().items()
  special = {index for index, token in added if token.special}
  steps = [_step(config) for config in _configs(backend.decoder)]

  def name(index: int) -> str | None:
    return None if index in special else backend.id_to_token(index)

  name = functools.cache(name)

  def read(ids):
    names = [name(int(index)) for index in ids]
    kept = [each.encode() for each in names if each is not None]
    for step in steps:
      kept = step(kept)
    rest = iter(kept)
    return [b"" if each is None else next(rest) for each in names]

  return read


def _configs(decoder: Any) -> Iterator[dict[str, Any]]:
  """The steps of a decoder, out of the sequences they are nested in."""
  if decoder is None:
    yield {"type": "none"}
    return
  waiting = [json.loads(decoder.__getstate__())]
  while waiting:
    config = waiting.pop(0)
    if config["type"] == "Sequence":
      waiting = config["decoders"] + waiting
    else:
      yield config


def _step(config: dict[str, Any]) -> Step:
  kind, pattern = config["type"], config.get("pattern", {})
  if kind == "ByteLevel":
    return lambda pieces: [_byte_level(piece) for piece in pieces]
  if kind == "Replace" and "String" in pattern:
    old, new = pattern["String"].encode(), config["content"].encode()
    return lambda pieces: [piece.replace(old, new) for piece in pieces]
  if kind == "ByteFallback":
    return _byte_fallback
  if kind == "Fuse":
    return lambda pieces: pieces
  if kind == "Strip" and not config["stop"]:
    return functools.partial(
      _strip, content=config["content"].encode(), count=config["start"]
    )
  if kind == "Metaspace":
    return functools.partial(
      _metaspace,
      mark=config["replacement"].encode(),
      prepended=config["prepend_scheme"] != "never",
    )
  raise ValueError(
    f"the tokenizer's decoder has the step {kind}, of which it is not known"
    " what it makes of a single token."
  )


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
  """GPT-2's printable stand-ins: a byte that prints is its own character."""
  own = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in own]
  stand_ins = {chr(256 + i): byte for i, byte in enumerate(others)}
  return {chr(byte): byte for byte in own} | stand_ins


@functools.cache
def _byte_level(piece: bytes) -> bytes:
  """A token with any character that stands for no byte is text as it is."""
  table = _bytes_of_characters()
  found = [table.get(char) for char in piece.decode()]
  return piece if None in found else bytes(found)


def _byte_fallback(pieces: Sequence[bytes]) -> list[bytes]:
  """Tokens <0x00> are bytes; where a run of them is no text, none is."""
  out, run = [], []

  def close():
    try:
      b"".join(run).decode()
    except UnicodeDecodeError:
      out.extend([_UNREADABLE] * len(run))
    else:
      out.extend(run)
    run.clear()

  for piece in pieces:
    match = _BYTE.fullmatch(piece.decode())
    if match:
      run.append(bytes([int(match[1], 16)]))
      continue
    close()
    out.append(piece)
  close()
  return out


def _strip(
  pieces: Sequence[bytes], *, content: bytes, count: int
) -> list[bytes]:
  """Takes up to `count` times `content` off the beginning of the text."""
  out = list(pieces)
  for index, piece in enumerate(out):
    while count and piece.startswith(content):
      piece, count = piece[len(content) :], count - 1
    out[index] = piece
    if piece:
      break
  return out


def _metaspace(
  pieces: Sequence[bytes], *, mark: bytes, prepended: bool
) -> list[bytes]:
  """Marks are spaces; the first token's were put there when encoding."""
  first = b"" if prepended else b" "
  return [
    piece.replace(mark, b" " if index else first)
    for index, piece in enumerate(pieces)
  ]
