"""Credit that keeps right and wrong answers apart (DRPO, DisCO)."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import group


def right_and_wrong(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  threshold: float | None = 0.5,
) -> tuple[Bool[Array, "N"], Bool[Array, "N"]]:
  """Which rows are right and which are wrong; a dropped row is neither.

  Args:
    rewards: outcome of each completion.
    weights: a row counts where this is positive; None counts all.
    threshold: right is a reward above it, wrong any other. None: right is
      exactly 1, wrong exactly 0, and any other reward is neither.
  """
  counted = group.counted_rows(weights, rewards)
  if threshold is None:
    return counted & (rewards == 1), counted & (rewards == 0)
  return counted & (rewards > threshold), counted & ~(rewards > threshold)


def decoupled_credit(
  right: Bool[Array, "N"],
  wrong: Bool[Array, "N"],
  lengths: Float[Array, "N"],
  *,
  group_size: int,
  temperature: float = 0.1,
) -> Float[Array, "N"]:
  """Shares 1 among the right answers of a prompt, -1 among the wrong ones.

    A_i =  exp(-len_i / lambda) / sum_{j right} exp(-len_j / lambda)   i right
    A_i = -1 / (number of wrong answers)                               i wrong

  and 0 in a group that lacks either kind. A length moves credit from one right
  answer to another, never below 0: no wrong answer has a say in it. Tends to
  equal shares (DisCO) as lambda grows.

  Args:
    right: answers to make likelier, groups contiguous.
    wrong: answers to make unlikelier.
    lengths: as shares of the longest there can be, in [0, 1].
    group_size: G; must divide N.
    temperature: lambda, in units of lengths; positive.

  Returns:
    Credit, dimensionless; its positive part sums to 1 in each group that has
    both kinds, its negative part to -1.

  References:
    Li et al. 2025, DRPO, arXiv:2510.04474, section 4.
  """
  chex.assert_equal_shape([right, wrong, lengths])
  chex.assert_is_divisible(right.shape[0], group_size)
  right, wrong, lengths = (
    x.reshape(-1, group_size) for x in (right, wrong, lengths)
  )
  shortest = jnp.where(right, lengths, jnp.inf).min(axis=1, keepdims=True)
  shares = jnp.exp((shortest - lengths) / temperature)
  shares = jnp.where(right, shares, 0.0)
  shares /= jnp.maximum(shares.sum(axis=1, keepdims=True), 1.0)
  count = jnp.maximum(wrong.sum(axis=1, keepdims=True), 1)
  both = right.any(axis=1, keepdims=True) & wrong.any(axis=1, keepdims=True)
  credit = shares - wrong / count
  return jnp.where(both, credit, 0.0).reshape(-1)
