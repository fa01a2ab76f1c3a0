"""Shapes of published models, so that a run can be planned without weights.

The numbers are those of each model's config.json.
"""

from jaxrl_llm.models import api


def _qwen3(width, depth, heads, mlp_width, *, tied):
  return api.ModelConfig(
    family="qwen3",
    vocab_size=151_936,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=8,
    head_dim=128,
    mlp_width=mlp_width,
    norm_eps=1e-6,
    tied=tied,
    rope_theta=1_000_000.0,
    qk_norm=True,
    max_positions=40_960,
  )


_LLAMA_3_1_8B = api.ModelConfig(
  family="llama",
  vocab_size=128_256,
  width=4096,
  depth=32,
  heads=32,
  kv_heads=8,
  head_dim=128,
  mlp_width=14_336,
  rope_theta=500_000.0,
  rope_scaling=api.RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
  ),
  max_positions=131_072,
)
_GEMMA_3_4B = api.ModelConfig(
  family="gemma3",
  vocab_size=262_208,
  width=2560,
  depth=34,
  heads=8,
  kv_heads=4,
  head_dim=256,
  mlp_width=10_240,
  activation="gelu_tanh",
  norm_eps=1e-6,
  tied=True,
  rope_theta=1_000_000.0,
  rope_theta_local=10_000.0,
  rope_scaling=api.RopeScaling(kind="linear", factor=8.0),
  qk_norm=True,
  window=1024,
  layer_windows=tuple((i + 1) % 6 > 0 for i in range(34)),
  query_scale=256**-0.5,
  max_positions=131_072,
)
SHAPES = {
  "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
  "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
  "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
  "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
  "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25_600, tied=False),
  "meta-llama/Llama-3.1-8B": _LLAMA_3_1_8B,
  "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_1_8B,
  "google/gemma-3-4b-pt": _GEMMA_3_4B,
  "google/gemma-3-4b-it": _GEMMA_3_4B,
}
