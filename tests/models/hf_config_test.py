"""config.json in both dialects, and settings that must not pass silently."""

import dataclasses

import pytest

from jaxrl_llm.models import api, families, hf_config

_LLAMA3 = {
  "factor": 32.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}
# Llama 3.2 1B, as on the hub (transformers 4).
LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "head_dim": 64,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 16,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": _LLAMA3,
  "rope_theta": 500000.0,
  "tie_word_embeddings": True,
  "vocab_size": 128256,
}
# The text part of Gemma 3 4B, as on the hub: mostly silent.
GEMMA = {
  "model_type": "gemma3",
  "text_config": {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
  },
  "vision_config": {"hidden_size": 1152},
}
QWEN = {
  "model_type": "qwen2",
  "hidden_size": 896,
  "intermediate_size": 4864,
  "max_window_layers": 21,
  "num_attention_heads": 14,
  "num_hidden_layers": 24,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}


def test_llama_of_version_4_is_read():
  assert hf_config.from_hf(LLAMA) == api.ModelConfig(
    family="llama",
    vocab_size=128256,
    width=2048,
    depth=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    mlp_width=8192,
    norm_eps=1e-5,
    tied=True,
    rope_theta=500_000.0,
    rope_scaling=api.RopeScaling(kind="llama3", factor=32.0),
    max_positions=131072,
  )


def test_version_5_says_the_same():
  new = {k: v for k, v in LLAMA.items() if not k.startswith("rope")}
  new["rope_parameters"] = _LLAMA3 | {"rope_theta": 500000.0}
  assert hf_config.from_hf(new) == hf_config.from_hf(LLAMA)


def test_silent_gemma_gets_the_familys_numbers():
  found = hf_config.from_hf(GEMMA)
  assert (found.family, found.tied, found.qk_norm) == ("gemma3", True, True)
  assert (found.heads, found.kv_heads, found.head_dim) == (8, 4, 256)
  assert found.vocab_size == 262208 and found.activation == "gelu_tanh"
  assert found.window == 1024 and found.max_positions == 131072
  assert (found.rope_theta, found.rope_theta_local) == (1e6, 1e4)
  assert found.rope_scaling.kind == "linear"
  assert found.query_scale is None and found.final_softcap is None
  slides = found.layer_windows
  assert len(slides) == 34 and slides[:6] == (True,) * 5 + (False,)
  assert sum(slides) == 29


def test_unused_windows_of_qwen_are_unused():
  found = hf_config.from_hf(QWEN)
  assert found.window is None and found.layer_windows == ()
  assert found.qkv_bias and found.head_dim == 64
  used = hf_config.from_hf(QWEN | {"use_sliding_window": True})
  assert used.layer_windows == (False,) * 21 + (True,) * 3


def test_old_pattern_and_new_list_of_windows_agree():
  text = GEMMA["text_config"] | {"num_hidden_layers": 5}
  pattern = hf_config.from_hf(text | {"sliding_window_pattern": 2})
  names = ["sliding_attention", "full_attention"] * 3
  assert hf_config.from_hf(text | {"layer_types": names[:5]}) == pattern
  assert pattern.layer_windows == (True, False, True, False, True)


def test_mistral_without_a_window_has_none():
  mistral = LLAMA | {"model_type": "mistral", "rope_scaling": None}
  found = hf_config.from_hf(mistral | {"sliding_window": 4096})
  assert found.window == 4096 and all(found.layer_windows)
  found = hf_config.from_hf(mistral | {"sliding_window": None})
  assert found.window is None


def test_null_softcap_of_gemma2_is_none():
  gemma = GEMMA["text_config"] | {"model_type": "gemma2", "rope_scaling": None}
  found = hf_config.from_hf(gemma)
  assert (found.attention_softcap, found.final_softcap) == (50.0, 30.0)
  found = hf_config.from_hf(gemma | {"attn_logit_softcapping": None})
  assert (found.attention_softcap, found.final_softcap) == (None, 30.0)


@pytest.mark.parametrize("source", (LLAMA, GEMMA, QWEN))
def test_written_config_is_read_back(source):
  config = hf_config.from_hf(source)
  words = hf_config.to_hf(config)
  assert hf_config.from_hf(words) == config
  for version in (
    {k: v for k, v in words.items() if k != "rope_parameters"},
    {
      k: v
      for k, v in words.items()
      if k not in ("rope_theta", "rope_scaling", "rope_local_base_freq")
    },
  ):
    assert hf_config.from_hf(version) == config


def test_extra_keys_are_kept():
  words = hf_config.to_hf(families.TINY, extra={"eos_token_id": 7})
  assert words["eos_token_id"] == 7 and words["bos_token_id"] is None


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "mamba"}, "model_type is 'mamba'; legal: llama, mistral"),
    ({"model_type": None}, "model_type is None"),
    ({"hidden_size": None}, "has no hidden_size"),
    ({"num_hidden_layers": "16"}, "num_hidden_layers = '16'"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"hidden_act": "relu"}, "activation 'relu'; legal: silu"),
    ({"attention_bias": True}, "attention_bias = True, which is not"),
    ({"mlp_bias": True}, "mlp_bias = True, which is not"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = "),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"num_key_value_heads": 5}, "kv_heads must divide heads"),
    (
      {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
      "rotary scaling 'longrope'; legal: default, linear, llama3, yarn",
    ),
    (
      {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
      "without low_freq_factor",
    ),
  ],
)
def test_what_is_not_supported_is_one_line(change, message):
  with pytest.raises(ValueError, match=message) as caught:
    hf_config.from_hf(LLAMA | change)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"qk_norm": True}, "qk_norm = True"),
    ({"window": 4, "layer_windows": (True, False)}, "layer_windows = "),
    ({"final_softcap": 30.0}, "final_softcap = 30.0"),
    ({"query_scale": 0.5}, "query_scale = 0.5"),
  ],
)
def test_what_has_no_words_is_not_written(change, message):
  config = dataclasses.replace(families.TINY, **change)
  with pytest.raises(ValueError, match=message):
    hf_config.to_hf(config)
