"""Weights out of GGUF files, dequantised to float32 tensor by tensor.

The file is memory-mapped; a shard touches only the rows it holds. Two habits
of the format are undone: `llama` files keep the rows of q and k interleaved
for another rotary layout, and `gemma` files keep norms with 1 added.

References:
  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
  llama.cpp, convert_hf_to_gguf.py (`LlamaModel.permute`, `Gemma2Model`).
"""

import os
from typing import Any

import gguf
import numpy as np
import transformers

from jaxrl_llm.models import api
from jaxrl_llm.models.weights import assemble, gguf_config, gguf_tokenizer

# Types whose dequantisation the tests check.
TYPES = tuple("F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q6_K".split())

# Our path in the tree -> name in the file, {} is the layer.
NAMES = {
  "embed": "token_embd.weight",
  "head": "output.weight",
  "final_norm": "output_norm.weight",
  "layers/attention_norm": "blk.{}.attn_norm.weight",
  "layers/attention_post_norm": "blk.{}.post_attention_norm.weight",
  "layers/mlp_norm": "blk.{}.ffn_norm.weight",
  "layers/mlp_post_norm": "blk.{}.post_ffw_norm.weight",
  "layers/attention/q": "blk.{}.attn_q.weight",
  "layers/attention/k": "blk.{}.attn_k.weight",
  "layers/attention/v": "blk.{}.attn_v.weight",
  "layers/attention/o": "blk.{}.attn_output.weight",
  "layers/attention/q_bias": "blk.{}.attn_q.bias",
  "layers/attention/k_bias": "blk.{}.attn_k.bias",
  "layers/attention/v_bias": "blk.{}.attn_v.bias",
  "layers/attention/q_norm": "blk.{}.attn_q_norm.weight",
  "layers/attention/k_norm": "blk.{}.attn_k_norm.weight",
  "layers/mlp/gate": "blk.{}.ffn_gate.weight",
  "layers/mlp/up": "blk.{}.ffn_up.weight",
  "layers/mlp/down": "blk.{}.ffn_down.weight",
}
_NOT_WEIGHTS = ("rope_freqs.weight",)  # read into the config


class File:
  """One open GGUF file: metadata, config, tensors, tokenizer.

  Attributes:
    path: where it is.
    metadata: key -> Python value (lists for arrays).
    config: the model's shape.
  """

  path: str
  metadata: dict[str, Any]
  config: api.ModelConfig

  def __init__(self, path: str | os.PathLike[str]):
    """Maps the file and checks that every tensor is there and readable.

    Args:
      path: a .gguf file, little-endian, in one piece.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one line: the file is broken or truncated, its architecture
        or a tensor's type is not supported, or tensors are missing.
    """
    self.path = os.fspath(path)
    reader = _open(self.path)
    self.metadata = {k: f.contents() for k, f in reader.fields.items()}
    self._tensors = {t.name: t for t in reader.tensors}
    try:
      self.config = gguf_config.from_metadata(
        self.metadata, self._shape, self._rope_factors()
      )
      self._check()
    except (ValueError, TypeError, ArithmeticError) as error:
      raise ValueError(f"GGUF file {self.path}: {error}") from error

  def params(self, **options: Any) -> api.Params:
    """The parameter tree; sharding and dtype as in assemble.assemble."""
    return assemble.assemble(self.config, self._read, **options)

  def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of the metadata; raises ValueError, one line."""
    try:
      return gguf_tokenizer.build(self.metadata)
    except ValueError as error:
      raise ValueError(f"GGUF file {self.path}: {error}") from error

  def stop_ids(self) -> tuple[int, ...]:
    """Ids that the metadata says end a text or a turn."""
    names = ("eos", "eot", "eom")
    keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
    return tuple(self.metadata[k] for k in keys if k in self.metadata)

  def _shape(self, name: str) -> tuple[int, ...] | None:
    """Outermost axis first, as numpy has it; None if not in the file."""
    if name not in self._tensors:
      return None
    return tuple(int(n) for n in reversed(self._tensors[name].shape))

  def _rope_factors(self) -> np.ndarray | None:
    if "rope_freqs.weight" not in self._tensors:
      return None
    return self._dequantised("rope_freqs.weight", slice(None))

  def _check(self) -> None:
    shapes = expected_shapes(self.config)
    for name, tensor in self._tensors.items():
      if name not in shapes and name not in _NOT_WEIGHTS:
        raise ValueError(
          f"tensor {name} has no place in a {self.config.family} model of"
          f" {self.config.depth} layers; use its Hugging Face folder."
        )
      if tensor.tensor_type.name not in TYPES:
        raise ValueError(
          f"tensor {name} has the type {tensor.tensor_type.name}; legal:"
          f" {', '.join(TYPES)}. Quantise the model to one of these."
        )
    for name, shape in shapes.items():
      if self._shape(name) != shape:
        raise ValueError(
          f"tensor {name} must have the shape {shape}, got"
          f" {self._shape(name) or 'no such tensor'}; download the file anew."
        )

  def _read(
    self, name: str, layer: int | None, index: tuple[slice, ...]
  ) -> np.ndarray:
    """One slice of one leaf in our orientation ([in, out]), float32."""
    stored = NAMES[name].format(layer)
    if len(index) == 1:
      values = self._dequantised(stored, index[0])
      gemma = self.config.family.startswith("gemma")
      return values - np.float32(1) if gemma else values
    if name in ("embed", "head"):
      return self._dequantised(stored, index[0])[:, index[1]]
    columns, rows = index
    if self.config.family == "llama" and name[-2:] in ("/q", "/k"):
      heads = self.config.heads if name[-1] == "q" else self.config.kv_heads
      rows = half_split_rows(heads, self.config.head_dim)[rows]
    return self._dequantised(stored, rows)[:, columns].T

  def _dequantised(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
    tensor = self._tensors[name]
    if len(tensor.shape) == 1:
      return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[rows]
    return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)


def half_split_rows(heads: int, head_dim: int) -> np.ndarray:
  """Where each row of a half-split rotary layout lies in a llama GGUF file.

  The file pairs rotary rows (2 i, 2 i + 1), we pair (i, i + head_dim / 2).

  Args:
    heads: heads in the matrix.
    head_dim: rows of one head; even.

  Returns:
    int [heads * head_dim]; our row r is row result[r] of the file.
  """
  rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
  return rows.swapaxes(1, 2).reshape(-1)


def expected_shapes(config: api.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Every tensor a file of this config must hold, [out, in], no more."""
  width, mlp, depth = config.width, config.mlp_width, config.depth
  q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
  whole = {"embed": (config.vocab_size, width), "final_norm": (width,)}
  if not config.tied:
    whole["head"] = (config.vocab_size, width)
  block = {
    "attention_norm": (width,),
    "mlp_norm": (width,),
    "attention/q": (q, width),
    "attention/k": (kv, width),
    "attention/v": (kv, width),
    "attention/o": (width, q),
    "mlp/gate": (mlp, width),
    "mlp/up": (mlp, width),
    "mlp/down": (width, mlp),
  }
  if config.family.startswith("gemma"):
    block |= {"attention_post_norm": (width,), "mlp_post_norm": (width,)}
  if config.qkv_bias:
    block |= {"attention/q_bias": (q,)}
    block |= {"attention/k_bias": (kv,), "attention/v_bias": (kv,)}
  if config.qk_norm:
    head = (config.head_dim,)
    block |= {"attention/q_norm": head, "attention/k_norm": head}
  shapes = {NAMES[name]: shape for name, shape in whole.items()}
  for layer in range(depth):
    for name, shape in block.items():
      shapes[NAMES[f"layers/{name}"].format(layer)] = shape
  return shapes


def load(
  path: str | os.PathLike[str], *, sharding: Any = None
) -> tuple[api.ModelConfig, api.Params]:
  """Config and float32 parameters of a GGUF file; errors as in File."""
  file = File(path)
  return file.config, file.params(sharding=sharding)


def read_tokenizer(
  path: str | os.PathLike[str],
) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer that a GGUF file carries in its metadata."""
  return File(path).tokenizer()


def _open(path: str) -> gguf.GGUFReader:
  if not os.path.isfile(path):
    raise FileNotFoundError(f"No GGUF file at {path}; check the path.")
  with open(path, "rb") as stream:
    magic = stream.read(4)
  if magic != b"GGUF":
    raise ValueError(
      f"{path} does not start with the bytes GGUF, got {magic!r}: it is not a"
      " GGUF file; download it anew."
    )
  try:
    return gguf.GGUFReader(path)
  except Exception as error:  # it trusts every length: damage fails anywhere
    reason = " ".join(str(error).split())[:160]
    raise ValueError(
      f"GGUF file {path} is broken or truncated ({reason}); download it anew."
    ) from error
