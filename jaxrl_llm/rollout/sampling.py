"""Sampling rules: logits and two uniforms a row to one token a row.

Truncations act in the order of Hugging Face transformers: temperature, top-k,
top-p, min-p. Each keeps the tokens above a threshold of the row, so together
they are one number a row and the vocabulary is never sorted. Tokens equal to
the threshold are all kept.

The draw inverts the distribution function at two levels: one uniform picks a
block of 128 vocabulary entries, the other a token inside it. Noise is then two
numbers a row instead of one Gumbel variable per vocabulary entry.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import chex
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 128
_INFINITY = 0x7F800000  # the bits of float32 inf


class Draw(NamedTuple):
  """One token a row.

  Attributes:
    token: [R] int32.
    logprob: [R] nats, under the distribution it was drawn from (temperature
      and truncations included; 0 when greedy).
    logprob_full: [R] nats, with the temperature but without truncation: what
      the trainer's log-probabilities must equal.
  """

  token: Int[Array, "R"]
  logprob: Float[Array, "R"]
  logprob_full: Float[Array, "R"]


Rule = Callable[[Float[Array, "R V"], Float[Array, "R 2"]], Draw]


def make_rule(
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  greedy: bool = False,
) -> Rule:
  """Builds draw(logits, uniforms) -> Draw; a row depends on itself only.

  The distribution is exact up to float32 rounding of the sums (about 1e-7 of
  the total) and the resolution of the uniforms (2^-23 in jax.random.uniform)
  at each level. A token of probability 0 is never drawn.

  Args:
    temperature: divides the logits; positive.
    top_k: keeps the k largest logits; 0 keeps all.
    top_p: keeps the smallest set of most likely tokens whose mass, after
      top-k, is at least p; 1 keeps all. In (0, 1].
    min_p: keeps tokens at least min_p times as likely as the likeliest; 0
      keeps all. In [0, 1].
    greedy: takes the first largest logit; the truncations do not matter and
      the temperature only enters logprob_full.

  References:
    Fan et al. 2018 (top-k), arXiv:1805.04833; Holtzman et al. 2020 (top-p),
    arXiv:1904.09751; Nguyen et al. 2024 (min-p), arXiv:2407.01082.
  """
  _check(temperature, top_k, top_p, min_p)
  inv_temperature = 1.0 / temperature

  def draw(logits, uniforms):
    chex.assert_rank([logits, uniforms], 2)
    chex.assert_shape(uniforms, (logits.shape[0], 2))
    # Relative logits are 0 at the mode and negative elsewhere.
    z = logits.astype(jnp.float32) * inv_temperature
    relative = z - z.max(axis=1, keepdims=True)
    if greedy:
      return _mode(relative)
    threshold = _threshold(relative, top_k=top_k, top_p=top_p, min_p=min_p)
    return _draw(relative, threshold, uniforms)

  return draw


def _mode(relative):
  total = jnp.exp(relative).sum(axis=1)
  token = _first(relative >= 0)
  token = jnp.minimum(token, relative.shape[1] - 1)
  return Draw(token, jnp.zeros_like(total), -jnp.log(total))


def _draw(relative, threshold, uniforms):
  """Draws by inverse distribution functions: the block, then the token."""
  sums = _block_sums(_weights(relative, threshold))
  block = _invert(sums, uniforms[:, 0])
  lane = jnp.arange(_BLOCK)[None]
  columns = block[:, None] * _BLOCK + lane
  index = jnp.minimum(columns, relative.shape[1] - 1)
  inside = jnp.take_along_axis(relative, index, axis=1)
  inside = jnp.where(columns < relative.shape[1], inside, -jnp.inf)
  place = _invert(_weights(inside, threshold), uniforms[:, 1])
  chosen = jnp.where(lane == place[:, None], inside, 0).sum(axis=1)
  total = sums.sum(axis=1)
  full = total if threshold is None else jnp.exp(relative).sum(axis=1)
  token = jnp.minimum(block * _BLOCK + place, relative.shape[1] - 1)
  return Draw(token, chosen - jnp.log(total), chosen - jnp.log(full))


def _weights(relative, threshold):
  weights = jnp.exp(relative)
  if threshold is None:
    return weights
  return jnp.where(relative >= threshold[:, None], weights, 0)


def _block_sums(weights):
  rows, vocab = weights.shape
  blocks = -(-vocab // _BLOCK)
  padded = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - vocab)))
  return padded.reshape(rows, blocks, _BLOCK).sum(axis=2)


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


def _threshold(relative, *, top_k, top_p, min_p):
  """[R] smallest relative logit to keep, or None if all are kept."""
  threshold = None
  if 0 < top_k < relative.shape[1]:
    kept = jnp.ones(relative.shape, jnp.int32)
    aim = jnp.full(relative.shape[:1], top_k, jnp.int32)
    threshold = _bisect(relative, kept, aim)
  if top_p < 1:
    weights = _weights(relative, threshold)
    threshold = _bisect(relative, weights, top_p * weights.sum(axis=1))
  if min_p > 0:
    floor = jnp.float32(math.log(min_p))
    threshold = floor if threshold is None else jnp.maximum(threshold, floor)
    threshold = jnp.broadcast_to(threshold, relative.shape[:1])
  return threshold


def _bisect(relative, weights, aim):
  """[R] largest threshold above which a row's weights sum to `aim` or more.

  A non-negative float orders as its bits do, so the smallest distance below
  the mode that holds enough weight is found exactly, one pass over the row
  for each of 31 bits; no sort.
  """
  distance = lax.bitcast_convert_type(jnp.abs(relative), jnp.int32)

  def narrow(i, below):
    # `below` is the largest distance tried that holds too little.
    bound = below + (jnp.int32(1) << (30 - i))
    held = jnp.where(distance <= bound[:, None], weights, 0).sum(axis=1)
    return jnp.where(held < aim, bound, below)

  start = jnp.full(relative.shape[:1], -1, jnp.int32)
  bound = jnp.minimum(lax.fori_loop(0, 31, narrow, start) + 1, _INFINITY)
  return -lax.bitcast_convert_type(bound, jnp.float32)


def _check(temperature, top_k, top_p, min_p):
  if not 0 < temperature < math.inf:
    raise ValueError(
      f"temperature must be positive, got {temperature}; for the most "
      "likely token set greedy=True."
    )
  if top_k < 0:
    raise ValueError(f"top_k must be 0 (off) or more, got {top_k}.")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1] (1 is off), got {top_p}.")
  if not 0 <= min_p <= 1:
    raise ValueError(f"min_p must be in [0, 1] (0 is off), got {min_p}.")
