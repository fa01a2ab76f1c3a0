"""One matrix product with a weight: inputs in a low dtype, sums in float32.

The vjp is written out for two reasons. The weight's gradient keeps the float32
sum instead of passing through bfloat16. And XLA's CPU backend reaches its
bfloat16 units only when the result is asked for in float32 and both operands
lie row by row, so every product here has that form.
"""

import functools
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = dict[str, Any]
_TILE = 16


@struct.dataclass
class LowRank:
  """The matrix w + scale * a b, which is never formed; w is frozen.

  Stands in the place of w in a parameter tree; below "layers" each of its
  arrays has the leading axis [depth] too.

  Attributes:
    w: [in, out], first: what looks at a shape sees that of the matrix.
    a: [in, rank].
    b: [rank, out].
    scale: static.
  """

  w: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)


def linear(
  x: Float[Array, "*batch I"],
  w: Float[Array, "I O"] | LowRank,
  *,
  dtype: jnp.dtype | None = None,
) -> Float[Array, "*batch O"]:
  """Multiplies x by a weight: y = x w.

  Args:
    x: inputs.
    w: weight, [in, out]; uint16 holds the bits of bfloat16 (see `freeze`). For
      a LowRank y = x w + scale * (x a) b, and no gradient of w is computed.
    dtype: dtype that both factors are rounded to before the product; None
      means that of x. Sums are always float32.

  Returns:
    The product in the dtype of x. The gradient of w has the dtype of w.
  """
  if isinstance(w, LowRank):
    change = linear(linear(x, w.a, dtype=dtype), w.b, dtype=dtype)
    return _linear(x, w.w, dtype, frozen=True) + w.scale * change
  return _linear(x, w, dtype)


def _linear(x, w, dtype, frozen=False):
  chex.assert_rank(w, 2)
  if w.dtype == jnp.uint16:
    w = jax.lax.bitcast_convert_type(w, jnp.bfloat16)
  rows = x.reshape(-1, x.shape[-1])
  y = _product(rows, w, jnp.dtype(dtype or x.dtype), frozen)
  return y.reshape(*x.shape[:-1], w.shape[1])


def freeze(params: Params, dtype: jnp.dtype) -> Params:
  """Copies parameters for sampling: matrices in `dtype`, vectors unchanged.

  The matrices of the layer stack are kept as the bits of bfloat16 (uint16),
  which `linear` reads: cutting one layer out of a stack of uint16 is a plain
  copy on every backend, of bfloat16 it is an element-wise loop on the CPU.
  What is frozen already stays as it is. Not differentiable.
  """

  def cast(path, leaf):
    stacked = path[0].key == "layers"
    if leaf.ndim < 2 + stacked or leaf.dtype == jnp.uint16:
      return leaf
    if leaf.dtype != dtype:
      leaf = leaf.astype(dtype)
    if stacked and leaf.dtype == jnp.bfloat16:
      return jax.lax.bitcast_convert_type(leaf, jnp.uint16)
    return leaf

  return jax.tree_util.tree_map_with_path(cast, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, w, dtype, frozen):
  del frozen
  return _dot(x.astype(dtype), w.astype(dtype)).astype(x.dtype)


def _forward(x, w, dtype, frozen):
  return _product(x, w, dtype, frozen), (None if frozen else x, w)


def _backward(dtype, frozen, residuals, g):
  x, w = residuals
  kind, g = g.dtype, g.astype(dtype)
  dx = jax.lax.dot_general(
    g,
    w.astype(dtype),
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if frozen:
    return dx.astype(kind), None
  dw = _dot(transposed(x.astype(dtype)), g)
  return dx.astype(kind), dw.astype(w.dtype)


_product.defvjp(_forward, _backward)


def _dot(a, b):
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def transposed(x: Float[Array, "M K"]) -> Float[Array, "K M"]:
  """x^T; on the CPU in bfloat16 as an array of its own, not a dot's flag.

  XLA folds a plain transpose into the dot, whose "both operands by columns"
  form runs at a quarter of the speed there. A blocked transpose is not folded.
  """
  if x.dtype != jnp.bfloat16 or x.shape[1] % _TILE:
    return x.T

  def blocked(x):
    rows, columns = x.shape
    tiles = x.reshape(rows, columns // _TILE, _TILE)
    return tiles.transpose(1, 2, 0).reshape(columns, rows)

  return jax.lax.platform_dependent(x, cpu=blocked, default=jnp.transpose)
