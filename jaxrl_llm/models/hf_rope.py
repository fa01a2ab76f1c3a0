"""Rotary settings of a config.json, in the words of transformers 4 and 5.

Version 5 has `rope_parameters`, one dict or one for each type of layer; 4 has
`rope_theta`, `rope_scaling` and Gemma 3's `rope_local_base_freq`.
"""

from collections.abc import Mapping
import math
from typing import Any

from jaxrl_llm.models import api, rope

_DEFAULT = {"rope_type": "default"}


def read(config: Mapping[str, Any], family: str) -> dict[str, Any]:
  """The rope_* fields of ModelConfig.

  Args:
    config: config.json with the family's defaults filled in.
    family: of ModelConfig.

  Raises:
    ValueError: one line: a scaling that is not supported.
  """
  full, local = _settings(config, family)
  theta = full.get("rope_theta", config.get("rope_theta", 10_000.0))
  return {
    "rope_theta": float(theta),
    "rope_theta_local": local,
    "rope_scaling": _scaling(full, config),
  }


def write(config: api.ModelConfig) -> dict[str, Any]:
  """The settings for both versions of transformers."""
  scaling = config.rope_scaling
  words: dict[str, Any] = dict(_DEFAULT)
  if scaling is not None:
    words = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
      words["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
      words["low_freq_factor"] = scaling.low_freq_factor
      words["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
      words["beta_fast"], words["beta_slow"] = (
        scaling.beta_fast,
        scaling.beta_slow,
      )
      if scaling.attention_factor is not None:
        words["attention_factor"] = scaling.attention_factor
  full = words | {"rope_theta": config.rope_theta}
  found: dict[str, Any] = {
    "rope_theta": config.rope_theta,
    "rope_scaling": None if scaling is None else dict(words),
    "rope_parameters": full,
  }
  if config.family == "gemma3":
    local = config.rope_theta_local or config.rope_theta
    found["rope_local_base_freq"] = local
    found["rope_parameters"] = {
      "full_attention": full,
      "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
  return found


def _settings(config, family):
  """Settings of global layers, and the base of Gemma 3's sliding ones."""
  settings = config.get("rope_parameters", {})
  old = config.get("rope_scaling") or {}
  if family != "gemma3":
    if "full_attention" in settings:  # one rule for each type of layer
      settings = settings["full_attention"]
    return settings | old, None
  sliding = settings.get("sliding_attention") or {}
  if sliding.get("rope_type", "default") != "default":
    raise ValueError(
      "config.json stretches the rotary positions of sliding layers"
      f" ({sliding['rope_type']!r}); legal: default."
    )
  local = sliding.get(
    "rope_theta", config.get("rope_local_base_freq", 10_000.0)
  )
  return (settings.get("full_attention") or {}) | old, float(local)


def _scaling(words, config):
  kind = words.get("rope_type", words.get("type", "default"))
  if kind == "default":
    return None
  legal = ("default", *rope.SCALINGS)
  if kind not in legal:
    raise ValueError(
      f"config.json has the rotary scaling {kind!r}; legal: {', '.join(legal)}."
    )
  positions = config["max_position_embeddings"]
  original = words.get("original_max_position_embeddings") or positions
  fields: dict[str, Any] = {}
  if kind == "llama3":
    fields["low_freq_factor"] = _need(words, "low_freq_factor")
    fields["high_freq_factor"] = _need(words, "high_freq_factor")
  if kind == "yarn":
    fields = _yarn(words)
  factor = words.get("factor") or positions / original
  return api.RopeScaling(
    kind=kind,
    factor=float(factor),
    original_positions=int(original),
    **fields,
  )


def _yarn(words):
  if not words.get("truncate", True):
    raise ValueError("config.json has yarn with truncate = False; legal: True.")
  attention = words.get("attention_factor")
  mscale, all_dims = words.get("mscale"), words.get("mscale_all_dim")
  if attention is None and mscale and all_dims:
    stretch = 0.1 * math.log(max(words["factor"], 1.0))
    attention = (mscale * stretch + 1.0) / (all_dims * stretch + 1.0)
  return {
    "beta_fast": float(words.get("beta_fast") or 32),
    "beta_slow": float(words.get("beta_slow") or 1),
    "attention_factor": attention,
  }


def _need(words, key):
  if words.get(key) is None:
    raise ValueError(
      f"config.json has a rotary scaling without {key}; download it anew."
    )
  return float(words[key])
