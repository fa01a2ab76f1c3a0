"""Text to ids and back.

`pad_id` fills what a mask hides and nothing is ever inferred from it: it may
equal a stop id. `stop_ids` is every id at which the model means to end.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import json
import pathlib
import re
from typing import Any, Protocol, runtime_checkable

import tokenizers as hf_tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from jaxrl_llm.data import pieces

# Tokens by which known chat templates end a turn.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")

Message = Mapping[str, str]


@runtime_checkable
class Tokenizer(Protocol):
  """What the house knows of a tokenizer.

  Attributes:
    vocab_size: ids are below this.
    pad_id: id written where a mask is false.
    stop_ids: ids that end a completion; never empty.
  """

  vocab_size: int
  pad_id: int
  stop_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Ids of a text, with the beginning token if the model has one."""

  def continuation(self, text: str) -> list[int]:
    """Ids of a text that follows another: without a beginning token."""

  def ending(self, *, chat: bool = False) -> int:
    """The id that ends a text, or in a conversation an assistant's turn."""

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; special tokens are dropped."""

  def pieces(self, ids: Iterable[int]) -> list[bytes]:
    """What each id adds to the text of all, in UTF-8; b"" where nothing.

    Together they are the text that decode makes, once what is no UTF-8 is
    replaced. A character may be spread over several of them.
    """

  def chat(self, messages: Sequence[Message]) -> str:
    """Text of a conversation, ending where the assistant is to speak."""

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes files that transformers.AutoTokenizer loads."""


class TextTokenizer:
  """A fast tokenizer of transformers; see Tokenizer."""

  vocab_size: int
  pad_id: int
  stop_ids: tuple[int, ...]

  def __init__(
    self,
    fast: transformers.PreTrainedTokenizerBase,
    *,
    stop_ids: Iterable[int] = (),
  ):
    """Wraps `fast`.

    Args:
      fast: the tokenizer.
      stop_ids: ids that end a completion, besides the tokenizer's eos and the
        end-of-turn token that its chat template uses.

    Raises:
      ValueError: no stop id is known.
    """
    self._fast = fast
    self.vocab_size = len(fast)
    found = {fast.eos_token_id, *stop_ids, *_end_of_turn(fast)} - {None}
    self.stop_ids = tuple(sorted(found))
    if not self.stop_ids:
      raise ValueError(
        "stop_ids is empty: the tokenizer has no eos token and no"
        " generation_config.json names one; add eos_token_id to"
        " config.json."
      )
    pad = fast.pad_token_id
    self.pad_id = self.stop_ids[0] if pad is None else pad

  def encode(self, text: str) -> list[int]:
    """Ids of a text; a beginning token that the text has is not doubled."""
    bos = self._fast.bos_token
    doubled = bool(bos) and text.startswith(bos)
    return self._fast.encode(text, add_special_tokens=not doubled)

  def continuation(self, text: str) -> list[int]:
    """Ids of a text that follows another."""
    return self._fast.encode(text, add_special_tokens=False)

  def ending(self, *, chat: bool = False) -> int:
    """The tokenizer's eos; in a conversation what its template writes."""
    if chat and (written := _written_end(self._fast)) is not None:
      return written
    eos = self._fast.eos_token_id
    return self.stop_ids[0] if eos is None else eos

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; special tokens are dropped."""
    return self._fast.decode(
      [int(i) for i in ids],
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )

  def pieces(self, ids: Iterable[int]) -> list[bytes]:
    """What each id adds to the text.

    Raises:
      ValueError: of this kind of tokenizer it is not known.
    """
    return self._read(ids)

  @functools.cached_property
  def _read(self):
    return pieces.reader(self._fast.backend_tokenizer)

  def chat(self, messages: Sequence[Message]) -> str:
    """Applies the chat template, with the generation prompt.

    Args:
      messages: {"role": ..., "content": ...}, oldest first.

    Raises:
      ValueError: the tokenizer has no chat template, or it refuses.
    """
    if not self._fast.chat_template:
      raise ValueError(
        "chat needs a tokenizer with a chat template, this one has none;"
        " set data.chat to False or use an instruct model."
      )
    try:
      return self._fast.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=True,
      )
    except Exception as error:  # templates raise what they like
      raise ValueError(
        f"the chat template refuses these messages: {_line(error)}"
      ) from error

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes the tokenizer, and stop ids to generation_config.json."""
    folder = pathlib.Path(folder)
    self._fast.save_pretrained(folder)
    _save_stops(folder, self.stop_ids, self.pad_id)


class CharTokenizer:
  """One id a character: printable ASCII and newline; see Tokenizer.

  The id of a character is its code. 128 ids, of which 0 pads and 3 (end of
  text in ASCII) stops.
  """

  vocab_size = 128
  pad_id = 0
  stop_ids = (3,)

  def encode(self, text: str) -> list[int]:
    """Codes of the characters; raises ValueError on any other character."""
    for position, char in enumerate(text):
      if char != "\n" and not " " <= char <= "~":
        raise ValueError(
          f"text has {char!r} at character {position}; the character"
          " tokenizer knows printable ASCII and newline only."
        )
    return [ord(char) for char in text]

  def continuation(self, text: str) -> list[int]:
    """Codes of the characters."""
    return self.encode(text)

  def ending(self, *, chat: bool = False) -> int:
    """Its one stop id."""
    del chat
    return self.stop_ids[0]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; ids that are no character are dropped."""
    chars = (chr(int(i)) for i in ids)
    return "".join(c for c in chars if c == "\n" or " " <= c <= "~")

  def pieces(self, ids: Iterable[int]) -> list[bytes]:
    """Each character by itself."""
    return [self.decode([index]).encode() for index in ids]

  def chat(self, messages: Sequence[Message]) -> str:
    """One line a turn, `role: content`, then `assistant:`."""
    turns = [f"{m['role']}: {m['content']}\n" for m in messages]
    return "".join(turns) + "assistant:"

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes the same ids as a word-level tokenizer of transformers."""
    names = [_char_name(i) for i in range(self.vocab_size)]
    backend = hf_tokenizers.Tokenizer(
      models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<0>")
    )
    one_char = hf_tokenizers.Regex(r"[\s\S]")
    backend.pre_tokenizer = pre_tokenizers.Split(one_char, "isolated")
    backend.decoder = decoders.Fuse()
    controls = [n for n in names if len(n) > 1]
    backend.add_special_tokens(controls)
    fast = transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend,
      pad_token=names[self.pad_id],
      eos_token=names[self.stop_ids[0]],
      clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (
      "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
      "{% endfor %}"
      "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    fast.save_pretrained(folder)
    _save_stops(pathlib.Path(folder), self.stop_ids, self.pad_id)


def from_folder(folder: str | pathlib.Path) -> TextTokenizer:
  """The tokenizer in a Hugging Face folder; runs no code found there.

  Raises:
    ValueError: one line: there is none, or it cannot be read.
  """
  folder = pathlib.Path(folder)
  if not any((folder / n).is_file() for n in _TOKENIZER_FILES):
    raise ValueError(
      f"{folder} holds no tokenizer; it needs one of"
      f" {', '.join(_TOKENIZER_FILES)}."
    )
  try:
    fast = transformers.AutoTokenizer.from_pretrained(
      folder, trust_remote_code=False, local_files_only=True
    )
  except Exception as error:  # anything: the files are the user's
    raise ValueError(
      f"{folder} holds a tokenizer that transformers cannot read:"
      f" {_line(error)}"
    ) from error
  return TextTokenizer(fast, stop_ids=_stops(folder))


_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def _stops(folder: pathlib.Path) -> tuple[int, ...]:
  """eos_token_id of both configs, an int or a list in either."""
  found: list[int] = []
  for name in ("generation_config.json", "config.json"):
    path = folder / name
    if not path.is_file():
      continue
    try:
      stated: Any = json.loads(path.read_text()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
      raise ValueError(
        f"{path} must be a JSON object: {_line(error)}"
      ) from error
    if stated is not None:
      found += [stated] if isinstance(stated, int) else stated
  return tuple(found)


def _save_stops(
  folder: pathlib.Path, stop_ids: tuple[int, ...], pad_id: int
) -> None:
  path = folder / "generation_config.json"
  stated = json.loads(path.read_text()) if path.is_file() else {}
  stated |= {"eos_token_id": list(stop_ids), "pad_token_id": pad_id}
  path.write_text(json.dumps(stated, indent=2) + "\n")


def _end_of_turn(fast: transformers.PreTrainedTokenizerBase) -> set[int]:
  template = fast.chat_template or ""
  vocab = fast.get_vocab()
  return {
    vocab[token]
    for token in END_OF_TURN
    if token in str(template) and token in vocab
  }


def _written_end(fast: transformers.PreTrainedTokenizerBase) -> int | None:
  """The first end of turn that a chat template writes after an answer."""
  if not _end_of_turn(fast):
    return None
  turns = [("user", "question"), ("assistant", "the answer")]
  try:
    text = fast.apply_chat_template(
      [{"role": role, "content": content} for role, content in turns],
      tokenize=False,
    )
  except Exception:  # templates raise what they like; a prompt then does, too
    return None
  tail = text.rpartition("the answer")[2]
  found = [token for token in END_OF_TURN if token in tail]
  if not found:
    return None
  return fast.get_vocab().get(min(found, key=tail.index))


def _char_name(index: int) -> str:
  char = chr(index)
  return char if char == "\n" or " " <= char <= "~" else f"<{index}>"


def _line(error: Exception) -> str:
  """The first 200 characters of an error, in one line."""
  return re.sub(r"\s+", " ", str(error))[:200]
