"""Llama, SmolLM2, Mistral, Qwen2 and Qwen3: norm before each half of a block.

They differ only in numbers: Qwen2 has biases on q, k and v, Qwen3 a norm on
each head's q and k, Mistral a sliding window.

References:
  Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023, arXiv:2310.06825;
  Yang et al. 2024, arXiv:2407.10671, and 2025, arXiv:2505.09388.
"""

from flax import linen as nn
import jax

from jaxrl_llm.models import api, decoder, layers


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Attributes:
    config: shape of the decoder.
    dtype: of the factors of products.
  """

  config: api.ModelConfig
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x, turns, window, cache, layer):
    """Returns x [R, L, D] after the block and what the cache keeps."""
    attention = layers.Attention(self.config, self.dtype, name="attention")
    mlp = layers.GatedMlp(self.config, self.dtype, name="mlp")
    out, kept = attention(
      self._norm(x, "attention_norm"), turns, window, cache, layer
    )
    x = x + out
    return x + mlp(self._norm(x, "mlp_norm")), kept

  def _norm(self, x, name):
    weight = self.param(name, nn.initializers.ones, (self.config.width,))
    return layers.rms_norm(x, weight, eps=self.config.norm_eps)


def build(
  config: api.ModelConfig, *, dtype: jax.typing.DTypeLike, remat: str
) -> decoder.Decoder:
  """The decoder of a Llama-like config; see families.build."""
  return decoder.Decoder(
    config=config, dtype=dtype, remat=remat, block=Block(config, dtype)
  )
