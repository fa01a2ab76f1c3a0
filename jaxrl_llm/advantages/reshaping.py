"""Advantages made of advantages: scaled by difficulty, by sign, by position.

Each takes the credit [N] of any estimator that compares siblings. Credit of
exactly 0 stays exactly 0.
"""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import group
from pallas_kernels import group_stats


def difficulty_reshaped(
  advantages: Float[Array, "N"],
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  alpha: float = 1.0,
  easy_factor: Literal["paper", "code"] = "paper",
  success: float | None = None,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """Moves the weight from easy to hard prompts as the policy gets better.

    omega = mean of all rewards,  p = success rate of the group
    f   = omega / (2 sqrt(p)) + (1 - omega) / (2 sqrt(1 - p))
    A_i <- f A_i where 0 < p < 1, else 0
    A_i <- min(1, omega / alpha) A_i where A_i > 0

  With GRPO's advantages the sum of |A| over a group is proportional to
  sqrt(p (1 - p)): the first term leaves sqrt(1 - p) of it, for hard prompts,
  the second sqrt(p), for easy ones. f is sqrt(2) / 2 at p = 1/2 for any omega.
  Signs stay; a group sums to 0 as long as omega >= alpha, else to less.

  easy_factor "code" is the second term of the official code, with eps,

    f = omega / (2 (sqrt(p) + eps)) + (1 - omega) / (2 (1 - sqrt(p) + eps))

  whose 1 / (1 - sqrt(p)) is 7.5 at p = 3/4, where 1 / sqrt(1 - p) is 2.

  Args:
    advantages: of any estimator over groups.
    rewards: that they came from, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    alpha: mean reward below which positive advantages are damped; positive.
    easy_factor: which of the two.
    success: reward from which a completion is a success; None takes rewards,
      clipped to [0, 1] in the mean, for what they are.
    eps: of easy_factor "code".

  Returns:
    Advantages, reshaped; 0 for rows that do not count.

  Raises:
    ValueError: if alpha is not in (0, 1] or easy_factor is unknown.

  References:
    A-GRAE, arXiv:2602.05548, eqs. 11 to 13, and its official code.
  """
  check_difficulty(alpha=alpha, easy_factor=easy_factor)
  chex.assert_equal_shape([advantages, rewards])
  counted = group.counted_rows(weights, rewards)
  if success is not None:
    rewards = (rewards >= success).astype(rewards.dtype)
  found = group_stats.group_moments(rewards, group_size, mask=counted)
  rate = jnp.clip(found.mean, 0.0, 1.0)
  whole = group.one_group(rewards, counted).mean[0, 0]
  omega = jnp.clip(whole, 0.0, 1.0)
  mixed = (rate > 0) & (rate < 1)
  root = jnp.sqrt(jnp.where(mixed, rate, 0.5))
  if easy_factor == "paper":
    rest = jnp.sqrt(jnp.where(mixed, 1.0 - rate, 0.5))
  else:
    root, rest = root + eps, 1.0 - root + eps
  factor = omega / (2.0 * root) + (1.0 - omega) / (2.0 * rest)
  shaped = factor * advantages.reshape(-1, group_size)
  shaped *= jnp.where(shaped > 0, jnp.minimum(omega / alpha, 1.0), 1.0)
  counted = counted.reshape(shaped.shape)
  return jnp.where(mixed & counted, shaped, 0.0).reshape(-1)


def hysteretic(
  advantages: Float[Array, "N"], *, alpha: float | Float[Array, ""]
) -> Float[Array, "N"]:
  """Multiplies negative advantages (HPO).

    A_i <- A_i if A_i >= 0 else alpha A_i

  In front of a clipped objective that weighs the loss of whole completions,
  since alpha is not negative. Sums over groups are then 0 or more.

  Args:
    advantages: of any estimator.
    alpha: in [0, 1]; 1 changes nothing, 0 learns from successes alone.

  References:
    HPO, arXiv:2605.30201.
  """
  return jnp.where(advantages < 0, alpha * advantages, advantages)


def positive_per_negative(
  advantages: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  alpha_min: float = 0.1,
) -> Float[Array, ""]:
  """The factor of negative advantages that A-HPO takes from the whole batch.

    alpha = clip(count(A > 0) / count(A < 0), alpha_min, 1)

  1 where nothing is negative. Where failures dominate, negative credit weighs
  no more than as many rows as are positive.

  Args:
    advantages: of the whole rollout, before it is cut into mini-batches.
    weights: a row counts where this is positive; None counts all.
    alpha_min: in [0, 1].

  Returns:
    alpha.

  References:
    HPO, arXiv:2605.30201.
  """
  chex.assert_rank(advantages, 1)
  counted = group.counted_rows(weights, advantages)
  positive = ((advantages > 0) & counted).sum()
  negative = ((advantages < 0) & counted).sum()
  share = (positive / jnp.maximum(negative, 1)).astype(advantages.dtype)
  return jnp.where(negative > 0, jnp.clip(share, alpha_min, 1.0), 1.0)


def position_shaped(
  advantages: Float[Array, "N"],
  positions: Float[Array, "N"],
  lengths: Float[Array, "N"],
  eligible: Bool[Array, "N"],
  *,
  group_size: int,
  delta: float = -2.0,
  k: float = 0.7,
) -> Float[Array, "N"]:
  """Adds a bounded bonus for an event that comes earlier than elsewhere (ASPO).

    b_i = clip(delta (p_i - mean_E p) / mean_E L, -k |A_i|, k |A_i|)
    A_i <- A_i + b_i for i in E

  E the eligible rows of a group. Before the clip the bonuses of a group sum to
  0. With k < 1 no advantage changes its sign, and credit of 0 stays 0.

  Args:
    advantages: of any estimator, groups contiguous.
    positions: p, token at which the event begins; looked at in E alone.
    lengths: L, tokens of each completion; looked at in E alone.
    eligible: E.
    group_size: G; must divide N.
    delta: credit per mean length; negative: earlier is better.
    k: largest share of an advantage that is added or taken; 0 or more.

  Returns:
    Advantages; those outside E as they came.

  Raises:
    ValueError: if delta is not finite or k is negative.

  References:
    ASPO, arXiv:2508.19201, eq. 2; |A| where the paper has A, which a baseline
    can make negative for a correct answer.
  """
  check_position(delta=delta, k=k)
  chex.assert_equal_shape([advantages, positions, lengths, eligible])
  early = group_stats.group_moments(positions, group_size, mask=eligible)
  length = group_stats.group_moments(lengths, group_size, mask=eligible).mean
  bonus = (delta * early.centred / jnp.maximum(length, 1.0)).reshape(-1)
  bound = k * jnp.abs(advantages)
  shaped = advantages + jnp.clip(bonus, -bound, bound)
  return jnp.where(eligible, shaped, advantages)


def check_difficulty(*, alpha: float, easy_factor: str) -> None:
  """Raises ValueError for what difficulty_reshaped cannot take."""
  if not 0 < alpha <= 1:
    raise ValueError(f"alpha must be in (0, 1], got {alpha}.")
  if easy_factor not in ("paper", "code"):
    raise ValueError(f"easy_factor must be paper or code, got {easy_factor!r}.")


def check_position(*, delta: float, k: float) -> None:
  """Raises ValueError unless delta is finite and k 0 or more and finite."""
  if not abs(delta) < float("inf"):
    raise ValueError(f"delta must be finite, got {delta}.")
  if not 0 <= k < float("inf"):
    raise ValueError(f"k must be 0 or more and finite, got {k}.")
