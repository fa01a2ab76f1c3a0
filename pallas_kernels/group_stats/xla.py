"""Moments in plain XLA: reshaped groups, an equality matrix, a one-hot matmul.

The arithmetic is the same for all three (`_moments`) and needs two things of
a form: sums over the group of an item, and the lowest value in it.

  low = min x;  above = x - low;  mean = low + sum(above) / n
  centred = above - sum(above) / n;  squares = sum(centred^2)

Taken from the lowest value, because the rounding of a large mean would turn
eight equal rewards of 0.9 into advantages of 0.056; in two passes, because
sum(x^2) / n - mean^2 cancels. Rounding that differs between copies that the
compiler makes of x cannot bring the 0.056 back: `equal` decides.

There is no Pallas kernel: at 131072 items all of this is far below a
millisecond, beside seconds of log-probs, and XLA keeps neither matrix (TPU).
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.group_stats.moments import Moments

ENTRIES = 2**22  # of a matrix of pairs, or of items and segments: 16 MB


def groups(x, mask):
  """Moments of the last axis of x [..., G]; mask is true where one counts."""
  return _moments(
    x,
    mask,
    lambda v: v.sum(axis=-1, keepdims=True),
    lambda v: v.min(axis=-1, keepdims=True),
  )


def segments(x, ids, mask, *, num_segments=None, entries=ENTRIES):
  """Moments [B, K] of the segments that ids make inside each row.

  Neither matrix is ever larger than `entries`, in the backward pass too: rows
  of a batch, and items of a one-hot matrix, are taken some at a time.

  Args:
    x: [B, K].
    ids: [B, K] integers.
    mask: [B, K].
    num_segments: None compares all pairs: a matrix [K, K] a row. S multiplies
      with a one-hot matrix [K, S], for ids in [0, S) where mask is true.
      Neither scatters: the sums of a GPU's scatter depend on the order in
      which its threads arrive.
    entries: of a matrix.
  """
  rows, items = x.shape
  if num_segments is None:
    row, width = _equality, items
  else:
    chunk = min(max(entries // num_segments, 1), items)
    row = functools.partial(_one_hot, num_segments=num_segments, chunk=chunk)
    width = num_segments
  at_once = max(entries // (items * width), 1)
  if at_once >= rows:
    return jax.vmap(row)(x, ids, mask)
  # Without the checkpoint the backward pass would get every matrix, stacked.
  row = jax.checkpoint(row)
  return jax.lax.map(lambda a: row(*a), (x, ids, mask), batch_size=at_once)


def _equality(x, ids, mask):
  same = (ids[:, None] == ids[None, :]) & mask[:, None] & mask[None, :]
  return _moments(
    x,
    mask,
    lambda v: jnp.where(same, v[None, :], 0).sum(axis=1),
    lambda v: jnp.where(same, v[None, :], jnp.inf).min(axis=1),
  )


def _one_hot(x, ids, mask, *, num_segments, chunk):
  items = x.shape[0]
  ids = jnp.where(mask, ids, -1)

  def split(values, fill):
    padded = jnp.pad(values, (0, -items % chunk), constant_values=fill)
    return padded.reshape(-1, chunk)

  parts = split(ids, -1)

  def sums(values):
    totals = _totals(parts, split(values, 0), num_segments)
    return _spread(parts, totals).reshape(-1)[:items]

  def lowest(values):
    table = _lowest(parts, split(values, jnp.inf), num_segments)
    return table[jnp.maximum(ids, 0)]

  return _moments(x, mask, sums, lowest)


def _moments(x, mask, sums, lowest):
  x = jnp.where(mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
  fixed = jax.lax.stop_gradient(x)
  low = lowest(jnp.where(mask, fixed, jnp.inf))
  high = -lowest(jnp.where(mask, -fixed, jnp.inf))
  count = sums(mask.astype(x.dtype))
  low = jnp.where(count > 0, low, 0)
  above = jnp.where(mask, x - low, 0)
  mean = sums(above) / jnp.maximum(count, 1)
  equal = ~(high > low)
  centred = jnp.where(mask, above - mean, 0)
  # Exactly 0 in value; the derivative stays that of subtracting a mean.
  exact = centred - jax.lax.stop_gradient(centred)
  centred = jnp.where(equal, exact, centred)
  return Moments(centred, low + mean, count, sums(centred**2), equal)


def _hot(ids, num_segments):
  """[chunk, S]: which segment an item is in; one of id -1 is in none."""
  return ids[:, None] == jnp.arange(num_segments)[None, :]


def _totals(ids, values, num_segments):
  """Sums [S] over each segment; ids and values are [chunks, chunk]."""

  @jax.checkpoint
  def add(total, part):
    hot = _hot(part[0], num_segments).astype(total.dtype)
    return total + jnp.dot(part[1], hot, precision="highest")

  start = jnp.zeros(num_segments, values.dtype)
  return jax.lax.scan(lambda t, p: (add(t, p), None), start, (ids, values))[0]


def _spread(ids, totals):
  """Gives every item the total of its segment: the transpose of _totals."""

  @jax.checkpoint
  def take(part):
    hot = _hot(part, totals.shape[0]).astype(totals.dtype)
    return jnp.dot(hot, totals, precision="highest")

  return jax.lax.map(take, ids)


def _lowest(ids, values, num_segments):
  """Lowest value [S] of each segment, inf where it has no item."""

  def step(lowest, part):
    inside = _hot(part[0], num_segments)
    here = jnp.where(inside, part[1][:, None], jnp.inf).min(axis=0)
    return jnp.minimum(lowest, here), None

  start = jnp.full(num_segments, jnp.inf, values.dtype)
  return jax.lax.scan(step, start, (ids, values))[0]
