"""config.json of a Hugging Face folder to ModelConfig and back.

Whatever would change the mathematics and is not supported is refused.
"""

from collections.abc import Mapping
import math
from typing import Any

from jaxrl_llm.models import api, families, hf_rope

_ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}
_GEMMA = {
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "intermediate_size": 9216,
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
# What transformers assumes when config.json is silent, by family.
_DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": {"max_position_embeddings": 2048},
  "mistral": {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
  },
  "qwen2": {"max_position_embeddings": 32_768, "sliding_window": 4096},
  "qwen3": {
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "head_dim": 128,
  },
  "gemma2": _GEMMA
  | {
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
  },
  "gemma3": _GEMMA
  | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
  },
}
# Settings of another mathematics, and the values that leave it as it is.
_REFUSED = {
  "mlp_bias": (False, None),
  "use_bidirectional_attention": (False, None),
  "partial_rotary_factor": (1.0, None),
  "no_rope_layers": ([], None),
  "quantization_config": (None,),
}


def from_hf(config: Mapping[str, Any]) -> api.ModelConfig:
  """The shape of the decoder that a config.json describes.

  Args:
    config: its content; of a multimodal Gemma 3 the text part is read.

  Raises:
    ValueError: one line: an unsupported model, setting, or a missing key.
  """
  family = _family(config)
  if "text_config" in config:
    config = {"tie_word_embeddings": True} | dict(config["text_config"])
  # A null overrides the default and then counts as absent.
  config = _DEFAULTS[family] | dict(config)
  config = {key: value for key, value in config.items() if value is not None}
  _refuse(config, family)
  heads = _count(config, "num_attention_heads")
  width = _count(config, "hidden_size")
  windows = _layer_windows(config, family)
  found = api.ModelConfig(
    family=family,
    vocab_size=_count(config, "vocab_size"),
    width=width,
    depth=_count(config, "num_hidden_layers"),
    heads=heads,
    kv_heads=config.get("num_key_value_heads", heads),
    head_dim=config.get("head_dim", width // heads),
    mlp_width=_count(config, "intermediate_size"),
    activation=_activation(config),
    norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    tied=bool(config.get("tie_word_embeddings", False)),
    qkv_bias=family == "qwen2",
    qk_norm=family in ("qwen3", "gemma3"),
    window=config["sliding_window"] if any(windows) else None,
    layer_windows=windows if any(windows) else (),
    max_positions=_count(config, "max_position_embeddings"),
    **hf_rope.read(config, family),
    **(_gemma(config) if family.startswith("gemma") else {}),
  )
  families.validate(found)
  return found


def to_hf(
  config: api.ModelConfig, *, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """A config.json that transformers (4 and 5) loads as the same decoder.

  Args:
    config: shape of the decoder.
    extra: further keys, such as eos_token_id; they may override.

  Raises:
    ValueError: one line: this family cannot say it in Hugging Face's words.
  """
  _check_sayable(config)
  family = config.family
  activation = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
  found: dict[str, Any] = {
    "architectures": [_ARCHITECTURES[family]],
    "model_type": "gemma3_text" if family == "gemma3" else family,
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": activation[config.activation],
    "rms_norm_eps": config.norm_eps,
    "max_position_embeddings": config.max_positions,
    "tie_word_embeddings": config.tied,
    "attention_bias": False,
    "attention_dropout": 0.0,
    # Or transformers assumes ids that mean something else here.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
  }
  found |= _windows_to_hf(config) | hf_rope.write(config)
  if family.startswith("gemma"):
    scale = config.query_scale or config.head_dim**-0.5
    found |= {
      "hidden_activation": found["hidden_act"],
      "query_pre_attn_scalar": round(scale**-2),
      "attn_logit_softcapping": config.attention_softcap,
      "final_logit_softcapping": config.final_softcap,
    }
  return found | dict(extra or {})


def _family(config):
  kind = config.get("model_type")
  family = {"gemma3_text": "gemma3"}.get(kind, kind)
  if family not in _ARCHITECTURES:
    raise ValueError(
      f"model_type is {kind!r}; legal: {', '.join(_ARCHITECTURES)},"
      " gemma3_text. Use a model of one of these."
    )
  return family


def _count(config, key):
  if key not in config:
    raise ValueError(f"config.json has no {key}; download it anew.")
  if not isinstance(config[key], int) or config[key] < 1:
    raise ValueError(
      f"config.json has {key} = {config[key]!r}; it must be a whole number"
      " above 0."
    )
  return config[key]


def _refuse(config, family):
  legal = dict(_REFUSED)
  if family != "qwen2":  # whose q, k and v always have one
    legal["attention_bias"] = (False, None)
  for key, values in legal.items():
    if config.get(key, values[0]) not in values:
      raise ValueError(
        f"config.json has {key} = {config[key]!r}, which is not supported;"
        f" legal: {values[0]!r}."
      )


def _activation(config):
  name = config.get("hidden_activation", config.get("hidden_act", "silu"))
  if name not in _ACTIVATIONS:
    raise ValueError(
      f"config.json has the activation {name!r}; legal:"
      f" {', '.join(_ACTIVATIONS)}."
    )
  return _ACTIVATIONS[name]


def _gemma(config):
  scalar = _count(config, "query_pre_attn_scalar")
  dim = _count(config, "head_dim")
  return {
    "query_scale": None if scalar == dim else float(scalar) ** -0.5,
    "attention_softcap": config.get("attn_logit_softcapping"),
    "final_softcap": config.get("final_logit_softcapping"),
  }


def _layer_windows(config, family):
  depth = _count(config, "num_hidden_layers")
  if family == "llama" or "sliding_window" not in config:
    return ()
  if family.startswith("qwen") and not config.get("use_sliding_window"):
    return ()
  if "layer_types" in config and family != "mistral":
    return _from_layer_types(config["layer_types"])
  if family == "mistral":
    return (True,) * depth
  if family.startswith("qwen"):
    first = config.get("max_window_layers", 28)
    return tuple(layer >= first for layer in range(depth))
  pattern = 2
  if family == "gemma3":
    pattern = config.get("sliding_window_pattern", 6)
  return tuple((layer + 1) % pattern != 0 for layer in range(depth))


def _from_layer_types(names):
  legal = ("full_attention", "sliding_attention")
  for name in names:
    if name not in legal:
      raise ValueError(
        f"config.json has the layer type {name!r}; legal: {', '.join(legal)}."
      )
  return tuple(name == "sliding_attention" for name in names)


def _windows_to_hf(config):
  found: dict[str, Any] = {"sliding_window": config.window}
  if config.family == "llama":
    return {}
  if config.family == "mistral":
    return found if any(config.layer_windows) else {"sliding_window": None}
  slides = config.layer_windows or (False,) * config.depth
  found["layer_types"] = [
    "sliding_attention" if one else "full_attention" for one in slides
  ]
  if config.family.startswith("qwen"):
    found["use_sliding_window"] = any(slides)
    # transformers 4 knows "all from this layer on" only.
    found["max_window_layers"] = slides.index(True) if any(slides) else 0
  return found


def _check_sayable(config):
  """Raises ValueError if the family's config.json has no word for a field."""
  family, slides = config.family, config.layer_windows
  gemma = family.startswith("gemma")
  legal = {
    "qkv_bias": config.qkv_bias == (family == "qwen2"),
    "qk_norm": config.qk_norm == (family in ("qwen3", "gemma3")),
    "rope_theta_local": family == "gemma3" or config.rope_theta_local is None,
    "layer_windows": not any(slides)
    or family not in ("llama", "mistral")
    or (family == "mistral" and all(slides)),
    "attention_softcap": gemma or config.attention_softcap is None,
    "final_softcap": gemma or config.final_softcap is None,
    "query_scale": config.query_scale is None
    or (gemma and _is_whole(config.query_scale**-2)),
  }
  for name, fits in legal.items():
    if not fits:
      raise ValueError(
        f"{name} = {getattr(config, name)} cannot be written as a Hugging Face"
        f" {family} config; choose another family."
      )


def _is_whole(value):
  return math.isclose(value, round(value), rel_tol=1e-6)
