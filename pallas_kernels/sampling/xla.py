"""Sampling without a sort and without a distribution in memory.

Every truncation keeps the tokens at or above a threshold of the row, so all of
them together are one number a row, and tokens equal to it are all kept. It is
found exactly, by one of two searches that give the same kept set:

- on TPU, for top-k with k at most 256: the k largest logits by lax.top_k, and
  top-p inside them;
- else bisection over the bits of a float: 31 passes over the row. XLA's top_k
  is a sort of the whole row on the CPU.

"inverse" inverts the distribution function at two levels: one uniform picks a
block of 128 vocabulary entries, the other a token inside it. The noise is two
numbers a row. "gumbel" takes the largest of logit plus Gumbel noise, which
fuses into one reduction; it costs one hash and two logarithms an entry.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from pallas_kernels.sampling import noise as noises

BLOCK = 128
TOP_K_FIRST = 256  # the largest k for which the k largest are taken
CHUNK = 2**14  # entries that are summed in blocks at a time on TPU


class Spec(NamedTuple):
  """What is known when tracing.

  Attributes:
    top_k: in [1, V), or None.
    top_p: in (0, 1), or None.
    min_p: in (0, 1], or None.
    method: "greedy", "inverse" or "gumbel".
  """

  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  method: str = "inverse"


class Rows(NamedTuple):
  """Tempered logits that are 0 at a row's mode and negative elsewhere.

  Kept as what they are made of, so that no copy of them has to be written.

  Attributes:
    logits: [B, V].
    top: [B, 1], the largest of each row.
    scale: scalar or [B, 1], the inverse temperature.
  """

  logits: jax.Array
  top: jax.Array
  scale: jax.Array

  def relative(self) -> jax.Array:
    """[B, V]; the difference comes before the scale.

    A compiler that contracts z scale - top into one rounding would let the
    mode differ from 0, and an entry from its own threshold.
    """
    dtype = self.scale.dtype
    return (self.logits.astype(dtype) - self.top.astype(dtype)) * self.scale

  def at(self, columns: jax.Array) -> jax.Array:
    """[B, n] entries of [B, n] columns."""
    part = jnp.take_along_axis(self.logits, columns, axis=1)
    return self._replace(logits=part).relative()

  def span(self, start: jax.Array | int, size: int) -> "Rows":
    """The rows from column `start` on, `size` columns."""
    part = lax.dynamic_slice_in_dim(self.logits, start, size, axis=1)
    return self._replace(logits=part)


def sample(logits, scale, noise, spec, search=None):
  """Returns (token, logprob, logprob_untruncated), each [B].

  Args:
    logits: [B, V], at least one finite a row.
    scale: scalar or [B, 1], the inverse temperature, in the dtype to compute.
    noise: uniforms [B, 2] ("inverse"), keys [B] ("gumbel"), or None.
    spec: Spec.
    search: search(rows, spec) -> [B] thresholds, or None for `find_threshold`.
  """
  rows = Rows(logits, logits.max(axis=1, keepdims=True), scale)
  if spec.method == "greedy":
    return _mode(rows)
  threshold = None
  if (spec.top_k, spec.top_p, spec.min_p) != (None, None, None):
    threshold = (search or find_threshold)(rows, spec)
  draw = _race if spec.method == "gumbel" else _inverse
  return draw(rows, threshold, noise)


def find_threshold(rows, spec):
  """[B] smallest relative logit to keep; spec has a truncation."""
  if spec.top_k is not None and spec.top_k <= TOP_K_FIRST:
    threshold = lax.platform_dependent(
      rows,
      tpu=lambda rows: by_top_k(rows.relative(), spec),
      default=lambda rows: by_bisection(rows.relative(), spec),
    )
  else:
    threshold = by_bisection(rows.relative(), spec)
  if spec.min_p is not None:
    floor = jnp.asarray(math.log(spec.min_p), rows.scale.dtype)
    threshold = floor if threshold is None else jnp.maximum(threshold, floor)
  return jnp.broadcast_to(threshold, rows.logits.shape[:1])


def by_bisection(relative, spec):
  """[B] threshold of top-k and top-p, or None if spec has neither."""
  threshold = None
  if spec.top_k is not None:
    count = jnp.ones(relative.shape, jnp.int32)
    aim = jnp.full(relative.shape[:1], spec.top_k, jnp.int32)
    threshold = _bisect(relative, count, aim)
  if spec.top_p is not None:
    weights = _weights(relative, threshold)
    aim = spec.top_p * weights.sum(axis=1)
    threshold = _bisect(relative, weights, aim)
  return threshold


def by_top_k(relative, spec):
  """As by_bisection, for a spec with top_k."""
  best = lax.top_k(relative, spec.top_k)[0]
  threshold = best[:, -1]
  if spec.top_p is None:
    return threshold
  aim = spec.top_p * _weights(relative, threshold).sum(axis=1)
  return _inside(best, aim)


def _inside(best, aim):
  """The first of `best`, largest first, up to which the mass is `aim`.

  `aim` counts ties beyond the k-th too; they matter to the last entry only,
  which is the answer where no other is.
  """
  held = jnp.cumsum(jnp.exp(best), axis=1)
  place = jnp.minimum(_first(held >= aim[:, None]), best.shape[1] - 1)
  return jnp.take_along_axis(best, place[:, None], axis=1)[:, 0]


def _bisect(relative, weights, aim):
  """[B] largest threshold above which a row's weights sum to `aim` or more.

  A non-negative float orders as its bits do, so the smallest distance below
  the mode that holds enough weight is found exactly, one pass over the row
  for each bit but the sign; no sort.
  """
  bits = 8 * relative.dtype.itemsize - 1
  integer = jnp.dtype(f"int{bits + 1}")
  infinity = jnp.asarray(jnp.inf, relative.dtype)
  infinity = lax.bitcast_convert_type(infinity, integer)
  one = jnp.ones((), integer)
  distance = lax.bitcast_convert_type(jnp.abs(relative), integer)

  def narrow(i, below):
    # `below` is the largest distance tried that holds too little.
    bound = below + (one << (bits - 1 - i).astype(integer))
    held = jnp.where(distance <= bound[:, None], weights, 0).sum(axis=1)
    return jnp.where(held < aim, bound, below)

  start = jnp.full(relative.shape[:1], -1, integer)
  bound = jnp.minimum(lax.fori_loop(0, bits, narrow, start) + 1, infinity)
  return -lax.bitcast_convert_type(bound, relative.dtype)


def _mode(rows):
  relative = rows.relative()
  token = jnp.minimum(_first(relative >= 0), relative.shape[1] - 1)
  total = jnp.exp(relative).sum(axis=1)
  return token, jnp.zeros_like(total), -jnp.log(total)


def _inverse(rows, threshold, uniforms):
  """Draws by inverse distribution functions: the block, then the token."""
  vocab = rows.logits.shape[1]
  sums = lax.platform_dependent(
    rows, threshold, tpu=_block_sums_by_chunk, default=_block_sums
  )
  block = _invert(sums, uniforms[:, 0])
  lane = jnp.arange(BLOCK)[None]
  columns = block[:, None] * BLOCK + lane
  inside = rows.at(jnp.minimum(columns, vocab - 1))
  inside = jnp.where(columns < vocab, inside, -jnp.inf)
  place = _invert(_weights(inside, threshold), uniforms[:, 1])
  chosen = jnp.where(lane == place[:, None], inside, 0).sum(axis=1)
  total = sums.sum(axis=1)
  full = total if threshold is None else jnp.exp(rows.relative()).sum(axis=1)
  token = jnp.minimum(block * BLOCK + place, vocab - 1)
  return token, chosen - jnp.log(total), chosen - jnp.log(full)


def _race(rows, threshold, keys):
  """Draws the largest of logit plus Gumbel noise."""
  relative = rows.relative()
  scores = relative + noises.gumbel(keys, relative.shape[1], relative.dtype)
  if threshold is not None:
    scores = jnp.where(relative >= threshold[:, None], scores, -jnp.inf)
  token = jnp.argmax(scores, axis=1).astype(jnp.int32)
  chosen = rows.at(token[:, None])[:, 0]
  full = jnp.exp(relative).sum(axis=1)
  total = full
  if threshold is not None:
    total = _weights(relative, threshold).sum(axis=1)
  return token, chosen - jnp.log(total), chosen - jnp.log(full)


def _weights(relative, threshold):
  weights = jnp.exp(relative)
  if threshold is None:
    return weights
  return jnp.where(relative >= threshold[:, None], weights, 0)


def _block_sums(rows, threshold):
  """[B, blocks] weight of each 128 entries."""
  weights = _weights(rows.relative(), threshold)
  count, vocab = weights.shape
  blocks = -(-vocab // BLOCK)
  padded = jnp.pad(weights, ((0, 0), (0, blocks * BLOCK - vocab)))
  return padded.reshape(count, blocks, BLOCK).sum(axis=2)


def _block_sums_by_chunk(rows, threshold):
  """The same; a TPU lays [B, blocks, 128] out anew, here a chunk at a time."""
  count, vocab = rows.logits.shape
  chunks, tail = divmod(vocab, CHUNK)
  if not chunks:
    return _block_sums(rows, threshold)
  parts = lax.map(
    lambda i: _block_sums(rows.span(i * CHUNK, CHUNK), threshold),
    jnp.arange(chunks),
  )
  parts = parts.swapaxes(0, 1).reshape(count, -1)
  if not tail:
    return parts
  last = _block_sums(rows.span(chunks * CHUNK, tail), threshold)
  return jnp.concatenate([parts, last], axis=1)


def _invert(weights, uniform):
  """First index whose cumulative weight exceeds uniform * total.

  Only indices of positive weight qualify, and the last of them is taken when
  rounding lets none exceed: the result never has probability zero.
  """
  cumulative = jnp.cumsum(weights, axis=1)
  aim = uniform * cumulative[:, -1]
  positive = weights > 0
  last = jnp.where(positive, jnp.arange(weights.shape[1])[None], 0).max(axis=1)
  return jnp.minimum(_first(positive & (cumulative > aim[:, None])), last)


def _first(condition):
  """Smallest true index of each row, or the row's length if there is none."""
  size = condition.shape[1]
  index = jnp.arange(size, dtype=jnp.int32)[None]
  return jnp.where(condition, index, size).min(axis=1)
