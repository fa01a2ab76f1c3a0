"""How many directions the hidden states of a completion use, and its course.

The effective rank of n vectors is e to the entropy of their normalised singular
values: 1 where all lie on a line, n - 1 where the centred ones are orthogonal
and as long. Measured on growing prefixes it has a velocity and an acceleration.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.distributed import sharding

_EPS = 1e-8


class Prefixes(NamedTuple):
  """Effective ranks of growing prefixes and their differences.

  Attributes:
    ranks: [J] e_j, of the first j stride + 1 vectors; 0 beyond the last one.
    velocities: [J] v_j = e_j - mean(e_1 .. e_{j-1}), 0 at j = 1.
    accelerations: [J] a_j = v_j - v_{j-1}, 0 up to j = 2.
    count: [] how many prefixes there are.
  """

  ranks: Float[Array, "J"]
  velocities: Float[Array, "J"]
  accelerations: Float[Array, "J"]
  count: Array


def effective_rank(
  hidden: Float[Array, "n D"], mask: Bool[Array, "n"]
) -> Float[Array, ""]:
  """e to the entropy of the centred vectors' singular values.

    q = s / (sum s + 1e-8),  ER = exp(-sum q log(q + 1e-8))

  s are roots of the eigenvalues of the smaller of the two products of the
  centred matrix with itself. In float32 those that should be 0 are not, and
  their roots are 3e-4 of the largest: so no more are counted than can be,
  min(n - 1, D).

  Args:
    hidden: one vector a token; may hold anything outside the mask.
    mask: true on the vectors that count; may have holes.

  Returns:
    From 1 (equal vectors too) to min(n - 1, D); 0 for less than two vectors.
    Invariant to rotation, translation and, but for the 1e-8, scale.

  References:
    Roy and Vetterli 2007, The effective rank. As in VERL, arXiv:2509.23808.
  """
  chex.assert_rank([hidden, mask], [2, 1])
  count = mask.sum()
  centred = _centred(hidden.astype(jnp.result_type(hidden, jnp.float32)), mask)
  if centred.shape[0] > centred.shape[1]:
    centred = centred.T
  gram = jnp.matmul(centred, centred.T, precision="highest")
  squares = jnp.linalg.eigvalsh(gram)[::-1]
  there = jnp.arange(len(squares)) < count - 1
  s = jnp.sqrt(jnp.where(there & (squares > 0), squares, 0.0))
  q = s / (s.sum() + _EPS)
  rank = jnp.exp(-(q * jnp.log(q + _EPS)).sum())
  return jnp.where(count >= 2, rank, 0.0)


def prefix_ranks(
  hidden: Float[Array, "T D"],
  mask: Bool[Array, "T"],
  *,
  stride: int,
  max_length: int,
) -> Prefixes:
  """Effective rank of every stride-th prefix, and how it moves.

  Args:
    hidden: one vector a token.
    mask: true on the vectors that count; may have holes.
    stride: S, tokens from one prefix to the next.
    max_length: of more vectors than this, the last so many are looked at.

  Returns:
    Arrays of J = (min(T, max_length) - 1) // S entries, 0 where there is none.

  References:
    VERL, arXiv:2509.23808.
  """
  chex.assert_rank([hidden, mask], [2, 1])
  kept = min(hidden.shape[0], max_length)
  order = jnp.argsort(~mask, stable=True)  # holes and padding behind
  total = mask.sum()
  first = jnp.maximum(total - kept, 0)
  chosen = jax.lax.dynamic_slice_in_dim(order, first, kept)
  hidden, count = hidden[chosen], jnp.minimum(total, kept)
  sizes = 1 + stride * jnp.arange(1, (kept - 1) // stride + 1)
  place = jnp.arange(kept)[None]
  ranks = jax.vmap(effective_rank, in_axes=(None, 0))(
    hidden, place < jnp.where(sizes <= count, sizes, 0)[:, None]
  )
  return _differences(ranks, (sizes <= count).sum())


def rank_dynamics(
  hidden: Float[Array, "N T D"],
  mask: Bool[Array, "N T"],
  *,
  stride: int = 40,
  max_length: int = 512,
) -> Float[Array, "N 3"]:
  """Acceleration, velocity and effective rank of each row, one row at a time.

    ERV = mean_j v_j over j >= 2,  ERA = mean_j a_j over j >= 3

  see Prefixes; 0 where there are none. The rank is that of all vectors.

  Args:
    hidden: one vector a token.
    mask: true on the vectors that count.
    stride: S, tokens.
    max_length: tokens of a row that the prefixes are taken from, the last.

  Returns:
    ERA, ERV, ER; without gradient.

  Raises:
    ValueError: if stride is below 1 or max_length below 2.

  References:
    VERL, arXiv:2509.23808.
  """
  check_prefixes(stride=stride, max_length=max_length)

  def one(row):
    hidden, mask = row
    found = prefix_ranks(hidden, mask, stride=stride, max_length=max_length)
    return jnp.stack(
      [
        found.accelerations.sum() / jnp.maximum(found.count - 2, 1),
        found.velocities.sum() / jnp.maximum(found.count - 1, 1),
        effective_rank(hidden, mask),
      ]
    )

  return sharding.by_rows(
    lambda *arrays: jax.lax.map(one, arrays), hidden, mask
  )


def check_prefixes(*, stride: int, max_length: int) -> None:
  """Raises ValueError for what rank_dynamics cannot take."""
  if stride < 1:
    raise ValueError(f"stride must be at least 1 token, got {stride}.")
  if max_length < 2:
    raise ValueError(f"max_length must be at least 2 tokens, got {max_length}.")


def _centred(x, mask):
  """x minus its mean, 0 outside the mask; exactly 0 for equal vectors."""
  first = x[jnp.argmax(mask)]
  x = jnp.where(mask[:, None], x - first[None], 0.0)
  mean = x.sum(axis=0, keepdims=True) / jnp.maximum(mask.sum(), 1)
  return jnp.where(mask[:, None], x - mean, 0.0)


def _differences(ranks, count):
  number = 1 + jnp.arange(len(ranks))
  before = jnp.cumsum(ranks) - ranks
  velocities = ranks - before / jnp.maximum(number - 1, 1)
  velocities = jnp.where((number >= 2) & (number <= count), velocities, 0.0)
  last = jnp.concatenate([jnp.zeros_like(ranks[:1]), velocities[:-1]])
  there = (number >= 3) & (number <= count)
  return Prefixes(
    ranks, velocities, jnp.where(there, velocities - last, 0.0), count
  )
