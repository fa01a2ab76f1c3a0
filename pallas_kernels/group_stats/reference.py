"""The truth: two passes of segment_sum, obvious lines, plain autodiff."""

import jax
import jax.numpy as jnp

from pallas_kernels.group_stats.moments import Moments


def groups(x, mask):
  """Moments of the rows of x [B, G]; mask [B, G] is true where one counts."""
  rows, size = x.shape
  ids = jnp.broadcast_to(jnp.arange(rows)[:, None], x.shape)
  out = _moments(x.reshape(-1), ids.reshape(-1), mask.reshape(-1))
  out = Moments(*(field.reshape(rows, size) for field in out))
  return Moments(out.centred, *(field[:, :1] for field in out[1:]))


def segments(x, ids, mask):
  """Moments [B, K] of the segments that ids [B, K] make inside each row."""
  rows, size = x.shape
  first = jnp.argmax(ids[:, :, None] == ids[:, None, :], axis=2)
  ids = first + size * jnp.arange(rows)[:, None]
  out = _moments(x.reshape(-1), ids.reshape(-1), mask.reshape(-1))
  return Moments(*(field.reshape(rows, size) for field in out))


def _moments(x, ids, mask):
  """Of all x [N] that share an id in [0, N), given to each of them."""
  size = x.shape[0]
  x = jnp.where(mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)

  def total(values):
    kept = jnp.where(mask, values, 0)
    return jax.ops.segment_sum(kept, ids, size)[ids]

  low = jax.ops.segment_min(jnp.where(mask, x, jnp.inf), ids, size)[ids]
  high = jax.ops.segment_max(jnp.where(mask, x, -jnp.inf), ids, size)[ids]
  count = total(jnp.ones_like(x))
  # From the lowest: equal values stay equal, whatever the rounding of a mean.
  low = jax.lax.stop_gradient(jnp.where(count > 0, low, 0))
  above = jnp.where(mask, x - low, 0)
  mean = total(above) / jnp.maximum(count, 1)
  centred = jnp.where(mask, above - mean, 0)
  squares = total(centred**2)
  return Moments(centred, low + mean, count, squares, ~(high > low))
