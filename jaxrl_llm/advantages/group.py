"""Advantages that compare a completion with its siblings.

A row counts when its weight is positive. Rows that do not count (dropped, or
unscorable) take no part in the statistics of their group and get exactly 0;
so does a group whose counted rewards are all equal, whatever the constant.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels import group_stats


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
  return _normalized(rewards, weights, group_size, ddof=ddof, eps=eps)


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
  return _normalized(rewards, weights, group_size, scale=None)


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
  knobs = {"center": "leave_one_out", "scale": None}
  return _normalized(rewards, weights, group_size, **knobs)


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
  knobs = {"center": "leave_one_out", "scale": "leave_one_out"}
  return _normalized(rewards, weights, group_size, ddof=ddof, eps=eps, **knobs)


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
) -> group_stats.Moments:
  """Deviations from the mean of the group: what group estimators build on.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.

  Raises:
    ValueError: if group_size < 2.
  """
  _check_groups(rewards, group_size)
  mask = counted_rows(weights, rewards)
  return group_stats.group_moments(rewards, group_size, mask=mask)


def counted_rows(
  weights: Float[Array, "N"] | None, like: Float[Array, "..."]
) -> Bool[Array, "..."]:
  """Which rows count, in the shape of `like`, an array of N numbers."""
  if weights is None:
    return jnp.ones(like.shape, bool)
  chex.assert_size(weights, like.size)
  return weights.reshape(like.shape) > 0


def one_group(
  values: Float[Array, "..."], counted: Bool[Array, "..."]
) -> group_stats.Moments:
  """Deviations from the mean of all entries that count, as one group."""
  return group_stats.group_moments(
    values.reshape(-1), values.size, mask=counted.reshape(-1)
  )


def std(groups: group_stats.Moments, *, ddof: int) -> Float[Array, "B 1"]:
  """Std of each group over its count - ddof; exactly 0 if all are equal."""
  return groups.std(ddof=ddof)


def _check_groups(rewards, group_size):
  if group_size < 2:
    raise ValueError(
      f"group_size must be at least 2, got {group_size}: a completion"
      " without siblings has nothing to be compared with."
    )
  chex.assert_rank(rewards, 1)
  chex.assert_is_divisible(rewards.shape[0], group_size)


def _normalized(rewards, weights, group_size, **knobs) -> Float[Array, "N"]:
  _check_groups(rewards, group_size)
  mask = counted_rows(weights, rewards)
  return group_stats.group_normalize(rewards, group_size, mask=mask, **knobs)
