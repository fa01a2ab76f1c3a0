"""Advantages with a baseline or a scale that one paper argues for.

Rows of weight 0 take no part and get exactly 0; so does a group whose counted
rewards are all equal, whatever the constant.
"""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group
from pallas_kernels import group_stats


def mean_scaled(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "N"]:
  """Divides by the mean reward of the group (MaxRL).

    A_i = (r_i - mean_g) / mean_g,  0 where mean_g <= 0

  For 0/1 rewards the mean is the pass rate: the rarer success is, the harder
  the push, as in the maximum likelihood of a correct answer. Meant for
  rewards that are not negative.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.

  Returns:
    Advantages, dimensionless, summing to zero in each group.

  References:
    MaxRL, arXiv:2602.02710, as prime-rl's max_rl computes it.
  """
  groups = group.from_group_mean(rewards, weights, group_size=group_size)
  positive = groups.mean > 0
  scale = jnp.where(positive, groups.mean, 1.0)
  return jnp.where(positive, groups.centred / scale, 0.0).reshape(-1)


def best_minus_second(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  normalize: bool = True,
  ddof: int = 1,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """Credit for the best of the group alone (pass@k).

    A_best = r_best - r_second, over (std_g + eps) if normalize;  A_i = 0 else

  This is max(all) - max(all but i): the leave-one-out baseline of the best
  of G. A tie at the top gives 0 to all.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    normalize: divide by the std of the group (verl norm_adv_by_std_in_grpo).
    ddof: subtracted from the number of rows in the variance.
    eps: added to the standard deviation, in units of reward.

  Returns:
    Advantages, none negative, at most one a group not 0.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.

  References:
    Tang et al. 2025, arXiv:2503.19595, as verl's grpo_passk computes it.
  """
  group.check_std(ddof=ddof, eps=eps)
  groups = group.from_group_mean(rewards, weights, group_size=group_size)
  counted = group.counted_rows(weights, groups.centred)
  centred = jnp.where(counted, groups.centred, -jnp.inf)
  best = centred.argmax(axis=1, keepdims=True) == jnp.arange(group_size)[None]
  second = jnp.where(best, -jnp.inf, centred).max(axis=1, keepdims=True)
  gap = jnp.where(groups.count > 1, centred - second, 0.0)
  scale = group.std(groups, ddof=ddof) + eps if normalize else 1.0
  return jnp.where(best & counted, gap / scale, 0.0).reshape(-1)


def length_weighted(
  rewards: Float[Array, "N"],
  lengths: Int[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "N"]:
  """Subtracts the mean reward of the group's tokens (OPO).

    A_i = r_i - b_g,  b_g = sum_i n_i r_i / sum_i n_i

  Equals group_centred when all lengths are equal. A row without tokens has
  no say in b_g; a group without any gets 0.

  Args:
    rewards: outcome of each completion, groups contiguous.
    lengths: n, the policy's own tokens of each completion.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N (verl takes G = 1, with b = 0).

  Returns:
    Advantages in units of reward; sum_i n_i A_i is zero in each group.

  References:
    Hao et al. 2025, arXiv:2505.23585.
  """
  chex.assert_equal_shape([rewards, lengths])
  groups = group.from_group_mean(rewards, weights, group_size=group_size)
  counted = group.counted_rows(weights, groups.centred)
  tokens = jnp.where(counted, lengths.reshape(-1, group_size), 0)
  total = tokens.sum(axis=1, keepdims=True)
  # From the mean of the group, not from 0: exact where all are equal.
  baseline = (tokens * groups.centred).sum(axis=1, keepdims=True)
  advantages = groups.centred - baseline / jnp.maximum(total, 1)
  return jnp.where(counted & (total > 0), advantages, 0.0).reshape(-1)


def rescaled_centred(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  count: Literal["mixed_groups", "nonzero_reward"] = "mixed_groups",
  divisor: float = 1.0,
) -> Float[Array, "N"]:
  """Centres in the group and makes up for rows that teach nothing (GPG).

    A_i = alpha (r_i - mean_g) / F,  alpha = N / max(1, M)

  M counts the rows of groups whose rewards are not all equal, as the paper
  says, or, for parity with verl, rows whose reward is not 0. N and M are of
  rows that count.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    count: what M counts.
    divisor: F, positive (verl f_norm).

  Returns:
    Advantages in units of reward over F, summing to zero in each group.

  Raises:
    ValueError: if group_size < 2, count is unknown or divisor <= 0.

  References:
    Chu et al. 2025, arXiv:2504.02546.
  """
  check_rescaling(count=count, divisor=divisor)
  groups = group.from_group_mean(rewards, weights, group_size=group_size)
  counted = group.counted_rows(weights, groups.centred)
  if count == "mixed_groups":
    useful = counted & ~groups.equal
  else:
    useful = counted & (rewards.reshape(-1, group_size) != 0)
  alpha = counted.sum() / jnp.maximum(useful.sum(), 1)
  return (alpha.astype(rewards.dtype) * groups.centred / divisor).reshape(-1)


def virtual_normalized(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  r_max: float = 1.0,
  n_virtual: int = 1,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """Standardises beside imagined completions of the highest reward (NGRPO).

    e_g = (r_1, ..., r_G, r_max repeated m times)
    A_i = (r_i - mean e_g) / (std e_g + eps),  std over G + m - 1

  A group that is wrong throughout pushes away from its answers: with rewards
  of 0, r_max and m of 1 every A_i is -1 / sqrt(G + 1). One that is right
  throughout gets exactly 0. m = 0 is group_normalized. In a group the
  advantages sum to -m (r_max - mean) / (std + eps).

  Args:
    rewards: outcome of each completion, groups contiguous, at most r_max.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    r_max: highest reward that the task can give.
    n_virtual: m, imagined completions a group; 0 or more.
    eps: added to the standard deviation, in units of reward.

  Returns:
    Advantages, dimensionless. A row without siblings is compared with nothing,
    nothing imagined either: r / (1 + eps), as in the official code.

  Raises:
    ValueError: if n_virtual < 0, r_max is not finite or eps <= 0.

  References:
    NGRPO, arXiv:2509.18851, and its official code.
  """
  check_virtual(r_max=r_max, n_virtual=n_virtual)
  group.check_std(ddof=1, eps=eps)
  chex.assert_rank(rewards, 1)
  grouped = rewards.reshape(-1, group_size)
  counted = group.counted_rows(weights, grouped)
  imagined = grouped.shape[0], n_virtual
  found = group_stats.group_moments(
    _beside(grouped, jnp.full(imagined, r_max, grouped.dtype)),
    group_size + n_virtual,
    mask=_beside(counted, jnp.ones(imagined, bool)),
  )
  compared = found.centred / (found.std(ddof=1) + eps)
  alone = jnp.where(counted, grouped, 0.0) / (1.0 + eps)
  several = counted.sum(axis=1, keepdims=True) > 1
  return jnp.where(several, compared[:, :group_size], alone).reshape(-1)


def greedy_baseline(
  returns: Float[Array, "N T"],
  greedy_rewards: Float[Array, "N"],
  mask: Bool[Array, "N T"],
) -> Float[Array, "N T"]:
  """Subtracts what greedy decoding of the same prompt earned (ReMax).

    A_it = G_it - m_it b_i

  Exactly 0 where a completion earned what greedy decoding did.

  Args:
    returns: G, as token.discounted_returns gives them; passed on unchanged
      outside the mask.
    greedy_rewards: b, reward of the greedy completion of each row's prompt.
    mask: true on the policy's own tokens.

  Returns:
    Advantages in units of reward.

  References:
    Li et al. 2023, arXiv:2310.10505.
  """
  chex.assert_equal_shape([returns, mask])
  return returns - jnp.where(mask, greedy_rewards[:, None], 0.0)


def check_rescaling(*, count: str, divisor: float) -> None:
  """Raises ValueError for what rescaled_centred cannot take."""
  if count not in ("mixed_groups", "nonzero_reward"):
    raise ValueError(
      f"count must be mixed_groups or nonzero_reward, got {count!r}."
    )
  if not 0 < divisor < float("inf"):
    raise ValueError(f"divisor must be positive and finite, got {divisor}.")


def check_virtual(*, r_max: float, n_virtual: int) -> None:
  """Raises ValueError for what virtual_normalized cannot take."""
  if not abs(r_max) < float("inf"):
    raise ValueError(f"r_max must be finite, got {r_max}.")
  if n_virtual < 0:
    raise ValueError(f"n_virtual must be 0 or more, got {n_virtual}.")


def _beside(left, right):
  """[B, n] and [B, m] as one flat array of groups of n + m."""
  return jnp.concatenate([left, right], axis=1).reshape(-1)
