"""Gemma 2 and Gemma 3 (text): norms before and after each half of a block.

Norm weights are stored minus 1, the embedding is scaled by sqrt(D), and
sliding-window layers alternate with global ones, which in Gemma 3 turn their
rotary positions by another base.

References:
  Gemma Team 2024, arXiv:2408.00118, and 2025, arXiv:2503.19786.
"""

from flax import linen as nn
import jax

from jaxrl_llm.models import api, decoder, layers

_OFFSET = 1.0


class Block(nn.Module):
  """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))).

  Attributes:
    config: shape of the decoder.
    dtype: of the factors of products.
  """

  config: api.ModelConfig
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x, turns, window, cache, layer):
    """Returns x [R, L, D] after the block and what the cache keeps."""
    attention = layers.Attention(
      self.config, self.dtype, _OFFSET, name="attention"
    )
    mlp = layers.GatedMlp(self.config, self.dtype, name="mlp")
    out, kept = attention(
      self._norm(x, "attention_norm"), turns, window, cache, layer
    )
    x = x + self._norm(out, "attention_post_norm")
    out = mlp(self._norm(x, "mlp_norm"))
    return x + self._norm(out, "mlp_post_norm"), kept

  def _norm(self, x, name):
    weight = self.param(name, nn.initializers.zeros, (self.config.width,))
    return layers.rms_norm(x, weight, eps=self.config.norm_eps, offset=_OFFSET)


def build(
  config: api.ModelConfig, *, dtype: jax.typing.DTypeLike, remat: str
) -> decoder.Decoder:
  """The decoder of a Gemma config; see families.build."""
  return decoder.Decoder(
    config=config,
    dtype=dtype,
    remat=remat,
    block=Block(config, dtype),
    embed_scale=config.width**0.5,
    norm_offset=_OFFSET,
  )
