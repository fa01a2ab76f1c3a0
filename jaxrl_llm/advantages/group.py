"""Advantages that compare a completion with its siblings.

A row counts when its weight is positive. Rows that do not count (dropped, or
unscorable) take no part in the statistics of their group and get exactly 0;
so does a group whose counted rewards are all equal, whatever the constant.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Groups(NamedTuple):
  """Rewards seen from the mean of their group.

  Attributes:
    centred: [B, G] r - mean_g; exactly 0 for rows that do not count and in
      groups whose counted rewards are all equal.
    mean: [B, 1] over the rows that count, 0 where none does.
    count: [B, 1] rows that count.
  """

  centred: Float[Array, "B G"]
  mean: Float[Array, "B 1"]
  count: Float[Array, "B 1"]


def group_normalized(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ddof: int = 1,
  eps: float = 1e-4,
) -> Float[Array, "N"]:
  """Standardises rewards inside each group (GRPO).

    A_i = (r_i - mean_g) / (std_g + eps)

  over the n rows of the group that count, std_g with n - ddof.

  Binary rewards with k of G ones and ddof 1 give, as eps -> 0,
  A(1) = sqrt((1 - p) / p * (G - 1) / G) with p = k / G.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    ddof: 1 divides the variance by n - 1 (TRL and verl), 0 by n (the text of
      the paper does not say).
    eps: added to the standard deviation, in units of reward; TRL uses 1e-4,
      verl 1e-6.

  Returns:
    Advantages, dimensionless, summing to zero in each group.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.

  References:
    Shao et al. 2024, arXiv:2402.03300, section 4.1.2.
  """
  check_std(ddof=ddof, eps=eps)
  groups = from_group_mean(rewards, weights, group_size=group_size)
  return (groups.centred / (std(groups, ddof=ddof) + eps)).reshape(-1)


def group_centred(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "N"]:
  """Subtracts the mean reward of the group (Dr. GRPO).

    A_i = r_i - mean_g

  Equals leave_one_out times (n - 1) / n, n the rows of the group that count.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.

  Returns:
    Advantages in units of reward, summing to zero in each group.

  Raises:
    ValueError: if group_size < 2.

  References:
    Liu et al. 2025, arXiv:2503.20783.
  """
  groups = from_group_mean(rewards, weights, group_size=group_size)
  return groups.centred.reshape(-1)


def leave_one_out(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "N"]:
  """Subtracts the mean reward of the siblings (RLOO).

    A_i = r_i - (sum_g - r_i) / (n - 1)  =  n / (n - 1) * (r_i - mean_g)

  with n the rows of the group that count; a row without siblings gets 0.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.

  Returns:
    Advantages in units of reward, summing to zero in each group.

  Raises:
    ValueError: if group_size < 2.

  References:
    Ahmadian et al. 2024, arXiv:2402.14740.
  """
  groups = from_group_mean(rewards, weights, group_size=group_size)
  scale = groups.count / jnp.maximum(groups.count - 1, 1)
  return (groups.centred * scale).reshape(-1)


def leave_one_out_normalized(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ddof: int = 1,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """Standardises by the siblings alone, without the row itself (NeMo RL).

    A_i = (r_i - mean_-i) / (std_-i + eps), not divided where std_-i = 0

  Warning: it explodes. Where all siblings but one nearly agree, std_-i is as
  small as their difference: rewards 1, 0, 0, 1e-6 give the first row more
  than 600 000. Here for comparison with NeMo's defaults
  (use_leave_one_out_baseline with normalize_rewards); prefer leave_one_out.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    ddof: subtracted from the number of siblings in the variance.
    eps: added to a standard deviation that is not 0, in units of reward.

  Returns:
    Advantages; they do not sum to zero in a group.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.
  """
  check_std(ddof=ddof, eps=eps)
  groups = from_group_mean(rewards, weights, group_size=group_size)
  counted = counted_rows(weights, groups.centred)
  siblings = counted[:, None, :] & ~jnp.eye(group_size, dtype=bool)[None]
  number = siblings.sum(axis=2)
  others = jnp.broadcast_to(groups.centred[:, None, :], siblings.shape)
  mean = _sum(siblings, others) / jnp.maximum(number, 1)
  squares = _sum(siblings, (others - mean[:, :, None]) ** 2)
  deviation = jnp.sqrt(squares / jnp.maximum(number - ddof, 1))
  low = jnp.where(siblings, others, jnp.inf).min(axis=2)
  high = jnp.where(siblings, others, -jnp.inf).max(axis=2)
  scale = jnp.where(high > low, deviation + eps, 1.0)
  advantages = (groups.centred - mean) / scale
  return jnp.where(counted & (number > 0), advantages, 0.0).reshape(-1)


def check_std(*, ddof: int, eps: float) -> None:
  """Raises ValueError unless ddof is 0 or 1 and eps is positive and finite."""
  if ddof not in (0, 1):
    raise ValueError(
      f"ddof must be 0 (std over G) or 1 (over G - 1), got {ddof}."
    )
  if not 0 < eps < float("inf"):
    raise ValueError(
      f"eps must be positive and finite, got {eps}: it keeps the division"
      " by the std of a group finite."
    )


def from_group_mean(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Groups:
  """Deviations from the mean of the group: what group estimators build on.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.

  Raises:
    ValueError: if group_size < 2.
  """
  if group_size < 2:
    raise ValueError(
      f"group_size must be at least 2, got {group_size}: a completion"
      " without siblings has nothing to be compared with."
    )
  chex.assert_rank(rewards, 1)
  chex.assert_is_divisible(rewards.shape[0], group_size)
  grouped = rewards.reshape(-1, group_size)
  return from_mean(grouped, counted_rows(weights, grouped))


def counted_rows(
  weights: Float[Array, "N"] | None, like: Float[Array, "..."]
) -> Bool[Array, "..."]:
  """Which rows count, in the shape of `like`, an array of N numbers."""
  if weights is None:
    return jnp.ones(like.shape, bool)
  chex.assert_size(weights, like.size)
  return weights.reshape(like.shape) > 0


def from_mean(
  grouped: Float[Array, "B G"], counted: Bool[Array, "B G"]
) -> Groups:
  """Deviations from the mean of each row of a table.

  Taken from the lowest entry: rounding of a large mean would otherwise turn
  eight equal rewards of 0.9 into advantages of 0.056.

  Args:
    grouped: any table; what does not count may hold anything.
    counted: true where an entry counts.
  """
  low = jnp.where(counted, grouped, jnp.inf).min(axis=1, keepdims=True)
  high = jnp.where(counted, grouped, -jnp.inf).max(axis=1, keepdims=True)
  count = counted.sum(axis=1, keepdims=True).astype(grouped.dtype)
  low, high = (jnp.where(count > 0, x, 0.0) for x in (low, high))
  above = jnp.where(counted, grouped - low, 0.0)
  mean = above.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
  centred = jnp.where(counted & (high > low), above - mean, 0.0)
  return Groups(centred, low + mean, count)


def std(groups: Groups, *, ddof: int) -> Float[Array, "B 1"]:
  """Std of each group over its count - ddof; exactly 0 if all are equal."""
  freedom = jnp.maximum(groups.count - ddof, 1)
  return jnp.sqrt((groups.centred**2).sum(axis=1, keepdims=True) / freedom)


def _sum(keep, values):
  return jnp.where(keep, values, 0.0).sum(axis=-1)
