"""Advantages that compare a completion with its siblings.

A row counts when its weight is positive. Rows that do not count (dropped, or
unscorable) take no part in the statistics of their group and get exactly 0;
so does a group whose counted rewards are all equal, whatever the constant.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
  centred, count = _centred(rewards, weights, group_size)
  freedom = jnp.maximum(count - ddof, 1)
  std = jnp.sqrt((centred**2).sum(axis=1, keepdims=True) / freedom)
  return (centred / (std + eps)).reshape(-1)


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
  return _centred(rewards, weights, group_size)[0].reshape(-1)


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
  centred, count = _centred(rewards, weights, group_size)
  return (centred * (count / jnp.maximum(count - 1, 1))).reshape(-1)


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


def _centred(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None,
  group_size: int,
) -> tuple[Float[Array, "B G"], Float[Array, "B 1"]]:
  """Deviation from the mean of the rows that count, and how many those are."""
  if group_size < 2:
    raise ValueError(
      f"group_size must be at least 2, got {group_size}: a completion"
      " without siblings has nothing to be compared with."
    )
  chex.assert_rank(rewards, 1)
  chex.assert_is_divisible(rewards.shape[0], group_size)
  grouped = rewards.reshape(-1, group_size)
  counted = _counted(weights, grouped)
  low = jnp.where(counted, grouped, jnp.inf).min(axis=1, keepdims=True)
  high = jnp.where(counted, grouped, -jnp.inf).max(axis=1, keepdims=True)
  # From the lowest sibling: rounding of a large mean would otherwise turn
  # eight equal rewards of 0.9 into advantages of 0.056.
  above = jnp.where(counted, grouped - low, 0.0)
  count = counted.sum(axis=1, keepdims=True).astype(grouped.dtype)
  mean = above.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)
  return jnp.where(counted & (high > low), above - mean, 0.0), count


def _counted(weights, grouped) -> Bool[Array, "B G"]:
  if weights is None:
    return jnp.ones(grouped.shape, bool)
  chex.assert_size(weights, grouped.size)
  return weights.reshape(grouped.shape) > 0
