"""Which tokens of a whole batch are the largest by some number."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def share(fraction: float, mask: Bool[Array, "N T"]) -> Int[Array, ""]:
  """floor(fraction * M), M the tokens of the mask.

  Args:
    fraction: in [0, 1].
    mask: true on tokens that count.
  """
  count = jnp.floor(fraction * mask.sum().astype(jnp.float32))
  return count.astype(jnp.int32)


def largest(
  values: Float[Array, "N T"],
  allowed: Bool[Array, "N T"],
  count: Int[Array, ""],
) -> Bool[Array, "N T"]:
  """The `count` largest of those allowed, the first of equals before.

  Args:
    values: compared; anything where they are not allowed.
    allowed: true on tokens that may be taken; all are if they are fewer.
    count: how many.
  """
  keys = jnp.where(allowed, -values, jnp.inf).reshape(-1)
  order = jnp.argsort(keys, stable=True)
  ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
  return allowed & (ranks < count).reshape(allowed.shape)
