"""GGUF metadata to ModelConfig.

GGUF leaves some numbers of a model out and llama.cpp knows them by heart; so
must we: Gemma's query scale and window pattern, llama 3's rope scaling (stored
as one factor per frequency).

References:
  llama.cpp, src/llama-model.cpp (`load_hparams`), convert_hf_to_gguf.py.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import numpy as np

from jaxrl_llm.models import api

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
# Depths of the 27B models, the only ones whose query scale is width / heads.
_WIDE_SCALE_DEPTH = {"gemma2": 46, "gemma3": 62}
# Of every so many layers, the last one is global.
_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6}


def from_metadata(
  metadata: Mapping[str, Any],
  shape: Callable[[str], tuple[int, ...] | None],
  rope_factors: np.ndarray | None = None,
) -> api.ModelConfig:
  """The shape of the decoder in a GGUF file.

  Args:
    metadata: key -> value.
    shape: tensor name -> [out, in], None if the file has no such tensor.
    rope_factors: the tensor rope_freqs.weight, [head_dim / 2], if present.

  Returns:
    The config; family is the architecture.

  Raises:
    ValueError: one line, without the file's name.
  """
  family = metadata.get("general.architecture")
  if family not in ARCHITECTURES:
    raise ValueError(
      f"general.architecture is {family!r}; legal:"
      f" {', '.join(ARCHITECTURES)}. Use a model of one of these."
    )

  def get(key: str, *default: Any) -> Any:
    value = metadata.get(f"{family}.{key}", *default)
    if value is None and not default:
      raise ValueError(f"metadata {family}.{key} is missing; download it anew.")
    return value

  embed = shape("token_embd.weight")
  if embed is None or len(embed) != 2:
    raise ValueError("tensor token_embd.weight is missing; download it anew.")
  heads, width = get("attention.head_count"), get("embedding_length")
  head_dim = get("attention.key_length", width // heads)
  return api.ModelConfig(
    family=family,
    vocab_size=embed[0],
    width=width,
    depth=get("block_count"),
    heads=heads,
    kv_heads=get("attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_width=get("feed_forward_length"),
    norm_eps=_shortest(get("attention.layer_norm_rms_epsilon")),
    tied=shape("output.weight") is None,
    rope_theta=float(get("rope.freq_base", 10_000.0)),
    rope_scaling=_rope_scaling(get, head_dim, rope_factors),
    qkv_bias=family == "qwen2",
    qk_norm=family in ("qwen3", "gemma3"),
    max_positions=get("context_length"),
    **(_gemma(family, get) if family.startswith("gemma") else {}),
  )


def _gemma(family: str, get: Callable[..., Any]) -> dict[str, Any]:
  depth, width = get("block_count"), get("embedding_length")
  pattern = _WINDOW_PATTERN[family]
  fields: dict[str, Any] = {
    "activation": "gelu_tanh",
    "window": get("attention.sliding_window"),
    "layer_windows": tuple((i + 1) % pattern != 0 for i in range(depth)),
  }
  if depth == _WIDE_SCALE_DEPTH[family]:
    fields["query_scale"] = (width / get("attention.head_count")) ** -0.5
  if family == "gemma2":
    fields["attention_softcap"] = float(get("attn_logit_softcapping", 50.0))
    fields["final_softcap"] = float(get("final_logit_softcapping", 30.0))
  else:
    fields["rope_theta_local"] = float(get("rope.freq_base_swa", 10_000.0))
  return fields


def _rope_scaling(
  get: Callable[..., Any], head_dim: int, factors: np.ndarray | None
) -> api.RopeScaling | None:
  if factors is not None:
    return _llama3(factors, float(get("rope.freq_base", 10_000.0)), head_dim)
  kind = get("rope.scaling.type", "none")
  if kind == "none":
    return None
  if kind not in ("linear", "yarn"):
    raise ValueError(
      f"rope.scaling.type is {kind!r}; legal: none, linear, yarn."
      " Use the model's Hugging Face folder."
    )
  original = get("rope.scaling.original_context_length", get("context_length"))
  return api.RopeScaling(
    kind=kind,
    factor=float(get("rope.scaling.factor")),
    original_positions=original,
    beta_fast=float(get("rope.scaling.yarn_beta_fast", 32.0)),
    beta_slow=float(get("rope.scaling.yarn_beta_slow", 1.0)),
  )


def llama3_factors(
  scaling: api.RopeScaling, theta: float, head_dim: int
) -> np.ndarray:
  """What llama 3 divides each rotary frequency by, [head_dim / 2].

  1 for wavelengths below original / high, factor above original / low, and
  1 / ((1 - s) / factor + s) between, s = (original / wavelength - low) /
  (high - low).
  """
  frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
  turns = scaling.original_positions * frequency / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def _llama3(
  factors: np.ndarray, theta: float, head_dim: int
) -> api.RopeScaling | None:
  """Finds the scaling whose factors these are: only `factor` ever varies."""
  if np.allclose(factors, 1.0):
    return None
  scaling = api.RopeScaling(kind="llama3", factor=float(factors.max()))
  expected = llama3_factors(scaling, theta, head_dim)
  if factors.shape != expected.shape or not np.allclose(
    factors, expected, rtol=1e-4
  ):
    raise ValueError(
      "tensor rope_freqs.weight is not llama 3's rope scaling with 8192"
      " original positions; use the model's Hugging Face folder."
    )
  return scaling


def _shortest(value: float) -> float:
  """1e-5 for the float32 nearest to 1e-5, so that configs compare equal."""
  return float(str(np.float32(value)))
