"""What every family's block is made of: norm, attention, gated MLP.

Activations between matrix products are float32; `dtype` is that of the factors
of the products and of the keys and values (sums are float32, see linear.py).
"""

import chex
from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import api, linear, rope

# Name of what the remat policy "dots" keeps: products with weights, attention.
PRODUCT = "product"
ACTIVATIONS = {
  "silu": nn.silu,
  "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
}
_kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def rms_norm(
  x: Float[Array, "... D"],
  weight: Float[Array, "D"],
  *,
  eps: float,
  offset: float = 0.0,
) -> Float[Array, "... D"]:
  """Scales the last axis to a root mean square of about 1, in float32.

    y = x / sqrt(mean(x^2) + eps) * (offset + weight)

  Args:
    x: any dtype.
    weight: one for each entry of the last axis.
    eps: added to the mean square.
    offset: 1 in the Gemma families, whose weights are stored minus 1.

  References:
    Zhang and Sennrich 2019, arXiv:1910.07467.
  """
  chex.assert_shape(weight, (x.shape[-1],))
  x = x.astype(jnp.float32)
  square = jnp.mean(x * x, axis=-1, keepdims=True)
  weight = jnp.expand_dims(offset + weight, tuple(range(x.ndim - 1)))
  return x * jax.lax.rsqrt(square + eps) * weight


class Attention(nn.Module):
  """Grouped-query attention; the cache decides who attends to whom.

  Attributes:
    config: shape of the decoder.
    dtype: of the factors of products, and of keys and values.
    norm_offset: as `offset` of rms_norm, for qk-norm.
  """

  config: api.ModelConfig
  dtype: jax.typing.DTypeLike
  norm_offset: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "R L D"],
    turns: rope.Tables,
    window: api.Window | None,
    cache: api.Cache,
    layer,
  ):
    """Returns the output [R, L, D] and what the cache keeps of k and v."""
    config = self.config
    x = _whole_rows(x)
    q = self._project(x, "q", "heads", config.heads)
    k = self._project(x, "k", "kv_heads", config.kv_heads)
    v = self._project(x, "v", "kv_heads", config.kv_heads).astype(self.dtype)
    if config.qk_norm:
      q, k = self._norm(q, "q_norm"), self._norm(k, "k_norm")
    q = rope.rotate(q, turns).astype(self.dtype)
    k = rope.rotate(k, turns).astype(self.dtype)
    scale = config.query_scale
    out, kept = cache.attend(
      layer,
      q,
      k,
      v,
      scale=config.head_dim**-0.5 if scale is None else scale,
      softcap=config.attention_softcap,
      window=window,
    )
    out = checkpoint_name(out, PRODUCT)
    out = out.reshape(*x.shape[:2], -1).astype(jnp.float32)
    w = self.param("o", _kernel_init, (out.shape[-1], config.width))
    return _whole_rows(_product(out, w, self.dtype)), kept

  def _project(self, x, name, axis, heads):
    width = heads * self.config.head_dim
    w = self.param(name, _kernel_init, (x.shape[-1], width))
    y = _product(x, w, self.dtype)
    if self.config.qkv_bias:
      bias = self.param(f"{name}_bias", nn.initializers.zeros, (width,))
      y = y + bias[None, None]
    y = y.reshape(*x.shape[:2], heads, self.config.head_dim)
    return sharding.constrain(y, "rows", None, axis, None)

  def _norm(self, x, name):
    init = nn.initializers.constant(1.0 - self.norm_offset)
    weight = self.param(name, init, (self.config.head_dim,))
    return rms_norm(
      x, weight, eps=self.config.norm_eps, offset=self.norm_offset
    )


class GatedMlp(nn.Module):
  """down(activation(gate(x)) * up(x)).

  Attributes:
    config: shape of the decoder.
    dtype: of the factors of products.

  References:
    Shazeer 2020, arXiv:2002.05202.
  """

  config: api.ModelConfig
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
    """See the class."""
    width, inner = self.config.width, self.config.mlp_width
    gate = self.param("gate", _kernel_init, (width, inner))
    up = self.param("up", _kernel_init, (width, inner))
    down = self.param("down", _kernel_init, (inner, width))
    x = _whole_rows(x)
    activation = ACTIVATIONS[self.config.activation]
    opened = activation(_product(x, gate, self.dtype))
    inside = opened * _product(x, up, self.dtype)
    inside = sharding.constrain(inside, "rows", None, "mlp")
    return _whole_rows(_product(inside, down, self.dtype))


def _whole_rows(x):
  """Rows [R, L, D] with all their tokens, of which a block keeps a part.

  Said here, or the gradients of weights would gather other devices' rows too.
  """
  return sharding.constrain(x, "rows", None, None)


def _product(x, w, dtype):
  return checkpoint_name(linear.linear(x, w, dtype=dtype), PRODUCT)
