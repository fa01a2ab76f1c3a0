"""A tokenizer from the metadata of a GGUF file.

Byte-level BPE comes with its merges, and `tokenizer.ggml.pre` names how text
is cut before merging; the expressions are those of llama.cpp, tried one after
the other on the pieces of the one before. SentencePiece BPE comes with a score
a piece, from which the merges follow.

References:
  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
  llama.cpp, src/llama-vocab.cpp (`llm_tokenizer_bpe`,
  `llm_tokenizer_spm`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
import transformers

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
  "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
  "gpt-2": (_GPT2,),
  "smollm": (r"\p{N}", _GPT2),
  "llama-bpe": (_LLAMA3,),
  "qwen2": (_LLAMA3.replace("{1,3}", ""),),
}

# tokenizer.ggml.token_type
_CONTROL = 3
_USER_DEFINED = 4


def build(
  metadata: Mapping[str, Any],
) -> transformers.PreTrainedTokenizerFast:
  """Builds the tokenizer: pieces, merges, special ids, chat template.

  Args:
    metadata: key -> value of a GGUF file.

  Returns:
    A fast tokenizer; `save_pretrained` writes a folder AutoTokenizer loads.

  Raises:
    ValueError: one line, without the file's name: a key is missing, or the
      model or pre-tokenizer is not one of those named here.
  """
  kind = metadata.get("tokenizer.ggml.model")
  if kind not in _BACKENDS:
    raise ValueError(
      f"tokenizer.ggml.model is {kind!r}; legal: 'gpt2' (byte-level BPE) and"
      " 'llama' (SentencePiece BPE). Use the model's Hugging Face folder."
    )
  tokens = _list(metadata, "tokens")
  backend = _BACKENDS[kind](metadata, tokens)
  _add_tokens(backend, metadata, tokens)
  _add_beginning(backend, metadata, tokens)
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    clean_up_tokenization_spaces=False,
    model_max_length=_context(metadata),
    **_special_tokens(metadata, tokens),
  )
  template = metadata.get("tokenizer.chat_template")
  if template:
    fast.chat_template = template
  return fast


def _byte_level(
  metadata: Mapping[str, Any], tokens: list[str]
) -> tokenizers.Tokenizer:
  pre = metadata.get("tokenizer.ggml.pre", "default")
  if pre not in PRE_TOKENIZERS:
    raise ValueError(
      f"tokenizer.ggml.pre is {pre!r}; legal: {', '.join(PRE_TOKENIZERS)}."
      " Load the tokenizer from the model's Hugging Face folder."
    )
  merges = [tuple(m.split(" ")) for m in _list(metadata, "merges")]
  backend = _merging(tokens, merges, ignore_merges=pre == "llama-bpe")
  if pre == "qwen2":
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = _pre_tokenizer(pre)
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentence_piece(
  metadata: Mapping[str, Any], tokens: list[str]
) -> tokenizers.Tokenizer:
  """Pieces with scores: the adjacent pair of the best score is joined first."""
  merges = score_merges(tokens, _list(metadata, "scores"))
  unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
  backend = _merging(
    tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
  )
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  marks = [normalizers.Replace(" ", "▁")]
  if metadata.get("tokenizer.ggml.add_space_prefix", True):
    marks.insert(0, normalizers.Prepend("▁"))
    steps.append(decoders.Strip(" ", 1, 0))
  backend.normalizer = normalizers.Sequence(marks)
  backend.decoder = decoders.Sequence(steps)
  return backend


def score_merges(
  tokens: Sequence[str], scores: Sequence[float]
) -> list[tuple[str, str]]:
  """Every pair of pieces that makes a third, best score of the third first."""
  known = set(tokens)
  found = [
    (score, at, len(token) - at, token)
    for token, score in zip(tokens, scores, strict=False)
    for at in range(1, len(token))
    if token[:at] in known and token[at:] in known
  ]
  found.sort(key=lambda pair: pair[:3], reverse=True)
  return [(token[:at], token[at:]) for _, at, _, token in found]


def _merging(
  tokens: list[str], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
  vocab = {token: i for i, token in enumerate(tokens)}
  try:
    return tokenizers.Tokenizer(models.BPE(vocab, merges, **options))
  except Exception as error:  # tokenizers raises bare Exception
    raise ValueError(
      f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens ({error});"
      " download the file anew."
    ) from error


_BACKENDS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _list(metadata: Mapping[str, Any], key: str) -> list[Any]:
  values = metadata.get(f"tokenizer.ggml.{key}")
  if not values:
    raise ValueError(
      f"metadata tokenizer.ggml.{key} is missing; download the file anew."
    )
  return values


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
  cuts = [
    pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    for expression in PRE_TOKENIZERS[name]
  ]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([*cuts, to_bytes])


def _add_tokens(
  backend: tokenizers.Tokenizer,
  metadata: Mapping[str, Any],
  tokens: list[str],
) -> None:
  """Marks the tokens that text is searched for before anything else."""
  types = metadata.get("tokenizer.ggml.token_type", [])
  added = [
    tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
    for token, kind in zip(tokens, types, strict=False)
    if kind in (_CONTROL, _USER_DEFINED)
  ]
  backend.add_tokens(added)


def _add_beginning(
  backend: tokenizers.Tokenizer,
  metadata: Mapping[str, Any],
  tokens: list[str],
) -> None:
  """Puts the beginning-of-text token first where the model wants one."""
  wants = (
    metadata["tokenizer.ggml.model"] == "llama"
    or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
  )
  first = metadata.get("tokenizer.ggml.bos_token_id")
  if first is None or not metadata.get("tokenizer.ggml.add_bos_token", wants):
    return
  token = tokens[first]
  backend.post_processor = processors.TemplateProcessing(
    single=f"{token} $A",
    pair=f"{token} $A {token}:1 $B:1",
    special_tokens=[(token, first)],
  )


def _special_tokens(
  metadata: Mapping[str, Any], tokens: list[str]
) -> dict[str, str]:
  """{"eos_token": "<|im_end|>", ...}, for the ids that the file names."""
  found = {}
  for ours, theirs in (
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("pad_token", "padding"),
  ):
    index = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    if index is None:
      continue
    if not 0 <= index < len(tokens):
      raise ValueError(
        f"tokenizer.ggml.{theirs}_token_id is {index}; legal: below"
        f" {len(tokens)}. Download the file anew."
      )
    found[ours] = tokens[index]
  return found


def _context(metadata: Mapping[str, Any]) -> int:
  family = metadata.get("general.architecture")
  return int(metadata.get(f"{family}.context_length", 10**9))
