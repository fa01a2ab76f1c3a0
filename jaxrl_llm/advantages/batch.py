"""Advantages that are divided by a deviation over the whole batch."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.advantages import group


def batch_normalized(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ddof: int = 1,
  eps: float = 1e-4,
) -> Float[Array, "N"]:
  """Centres in the group, divides by the std of the whole batch.

    A_i = (r_i - mean_g) / (std(r) + eps)

  over all rows that count: an easy group is not blown up (TRL scale_rewards
  "batch").

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    ddof: 1 divides the variance by one less than the rows, 0 by the rows.
    eps: added to the standard deviation, in units of reward.

  Returns:
    Advantages, dimensionless, summing to zero in each group.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.

  References:
    Liu et al. 2025, Tricks or Traps, arXiv:2508.08221.
  """
  group.check_std(ddof=ddof, eps=eps)
  groups = group.from_group_mean(rewards, weights, group_size=group_size)
  std = batch_std(rewards, weights, ddof=ddof)
  return (groups.centred / (std + eps)).reshape(-1)


def batch_scaled(
  advantages: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  ddof: int = 1,
  eps: float = 1e-4,
) -> Float[Array, "N"]:
  """Divides advantages by their std over the batch (TRL normalize_advantages).

    A_i <- A_i / (std(A) + eps)

  Whitening, for advantages that sum to zero in each group, as those of
  leave_one_out do: their mean is 0 but for rounding, and to subtract that
  would take its exact 0 from a group of equal rewards.

  Args:
    advantages: one a completion.
    weights: a row counts where this is positive; None counts all.
    ddof: 1 divides the variance by one less than the rows, 0 by the rows.
    eps: added to the standard deviation.

  Returns:
    Advantages of deviation 1; 0 for rows that do not count.

  Raises:
    ValueError: if ddof is not 0 or 1, or eps <= 0.
  """
  group.check_std(ddof=ddof, eps=eps)
  counted = group.counted_rows(weights, advantages)
  std = batch_std(advantages, weights, ddof=ddof)
  return jnp.where(counted, advantages, 0.0) / (std + eps)


def batch_std(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  ddof: int = 1,
) -> Float[Array, ""]:
  """Std over all rows that count; exactly 0 where all are equal.

  Args:
    rewards: one a completion.
    weights: a row counts where this is positive; None counts all.
    ddof: subtracted from the number of rows that count.
  """
  chex.assert_rank(rewards, 1)
  counted = group.counted_rows(weights, rewards)
  return group.std(group.one_group(rewards, counted), ddof=ddof)[0, 0]
