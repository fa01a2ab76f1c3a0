"""From a config to a language model: the families by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_llm.models import api, decoder, gemma, layers, llama, rope

FAMILIES: dict[str, Callable[..., api.LanguageModel]] = {
  "llama": llama.build,
  "mistral": llama.build,
  "qwen2": llama.build,
  "qwen3": llama.build,
  "gemma2": gemma.build,
  "gemma3": gemma.build,
}

# A model for tests and dry runs, with the 128 ids of CharTokenizer.
TINY = api.ModelConfig(
  family="llama",
  vocab_size=128,
  width=64,
  depth=2,
  heads=4,
  kv_heads=2,
  head_dim=16,
  mlp_width=128,
  tied=True,
)


def build(
  config: api.ModelConfig,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  remat: str = "none",
) -> api.LanguageModel:
  """The model of a config.

  Args:
    config: its shape; `family` chooses the block.
    dtype: of the factors of matrix products; parameters stay as given.
    remat: what the backward pass computes anew: "none"; "dots", all but matrix
      products; "full", everything inside a block (least memory).

  Raises:
    ValueError: one line: an unknown name, or numbers that do not fit.
  """
  _choose("family", config.family, FAMILIES)
  _choose("remat", remat, decoder.REMAT)
  validate(config)
  return FAMILIES[config.family](config, dtype=jnp.dtype(dtype), remat=remat)


def validate(config: api.ModelConfig) -> None:
  """Raises ValueError, one line, unless the numbers fit together."""
  _choose("activation", config.activation, layers.ACTIVATIONS)
  if config.rope_scaling is not None:
    _choose("rope_scaling.kind", config.rope_scaling.kind, rope.SCALINGS)
  for name in "vocab_size width depth heads kv_heads mlp_width".split():
    if getattr(config, name) < 1:
      raise ValueError(
        f"{name} must be at least 1, got {getattr(config, name)}."
      )
  if config.heads % config.kv_heads:
    raise ValueError(
      f"kv_heads must divide heads, got {config.kv_heads} and {config.heads}."
    )
  if config.head_dim < 2 or config.head_dim % 2:
    raise ValueError(
      f"head_dim must be even for rotary positions, got {config.head_dim}."
    )
  if config.layer_windows and len(config.layer_windows) != config.depth:
    raise ValueError(
      f"layer_windows must be empty or have depth = {config.depth} entries,"
      f" got {len(config.layer_windows)}."
    )
  if any(config.layer_windows) and (config.window or 0) < 1:
    raise ValueError(
      f"window must be at least 1 when layers slide, got {config.window}."
    )


def _choose(name, value, legal):
  if value not in legal:
    raise ValueError(
      f"{name} must be one of {', '.join(legal)}, got {value!r}."
    )
