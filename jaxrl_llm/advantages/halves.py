"""Advantages against the half of the group that a metric puts a row in, or not.

A metric (a length, an entropy) orders the rows of a group; the lower half and
the upper half then are each other's baseline, or their own.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import group
from pallas_kernels import group_stats

# Which half's rewards are scaled when the halves are compared.
SCALED = ("lower", "upper")


def lower_half(
  metric: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Bool[Array, "N"]:
  """The floor(n / 2) rows of each group with the least metric.

  n are the rows of the group that count; the others are in neither half. Ties
  keep the order of the rows.

  Args:
    metric: one a completion; may hold anything in rows that do not count.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
  """
  counted = group.counted_rows(weights, metric).reshape(-1, group_size)
  keys = jnp.where(counted, metric.reshape(-1, group_size), jnp.inf)
  # Rows that do not count come last even where a metric is infinite.
  order = jnp.lexsort((keys, ~counted), axis=1)
  rank = jnp.argsort(order, axis=1)
  rows = counted.sum(axis=1, keepdims=True)
  return (rank < rows // 2).reshape(-1)


def conditional_advantages(
  rewards: Float[Array, "N"],
  metric: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  mu: float | Float[Array, ""] = 1.0,
  alpha: float = 1.0,
  beta: float = 0.0,
  scaled: str = "lower",
) -> Float[Array, "N"]:
  """Compares a row with the other half of its group, and with its own (CANON).

    inter_i = s r_i - mean of s r over the other half + beta in the upper half,
                                                      - beta in the lower half
    intra_i = r_i - mean of r over the own half
    A_i     = mu inter_i + (1 - mu) intra_i

  with s = alpha in the half that `scaled` names, 1 in the other. For even n,
  alpha 1, beta 0 and mu 1/2 it is group_centred; with mu 1 it sums to zero in
  each group.

  Args:
    rewards: outcome of each completion, groups contiguous.
    metric: what the rows of a group are ordered by.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N. A group of one is an upper half whose means
      are 0 (as the official code has it); a row that lost its siblings gets 0.
    mu: share of the comparison between halves, in [0, 1].
    alpha: positive; below 1 the half that is scaled has the worse of it.
    beta: reward given to the upper half and taken from the lower.
    scaled: one of SCALED: "lower" for an entropy, "upper" for a length.

  Returns:
    Advantages in units of reward. For alpha 1 and beta 0 exactly 0 where all
    rewards of a group are equal.

  Raises:
    ValueError: if scaled is neither.

  References:
    CANON, arXiv:2509.23962, and its code.
  """
  if scaled not in SCALED:
    raise ValueError(f"scaled must be lower or upper, got {scaled!r}.")
  chex.assert_equal_shape([rewards, metric])
  counted = group.counted_rows(weights, rewards).reshape(-1, group_size)
  own = alpha if scaled == "upper" else 1.0
  if group_size == 1:
    alone = mu * (own * rewards + beta) + (1.0 - mu) * rewards
    return jnp.where(counted[:, 0], alone, 0.0)
  whole = group.from_group_mean(rewards, weights, group_size=group_size)
  lower = lower_half(metric, weights, group_size=group_size)
  lower = lower.reshape(counted.shape)
  halves = [
    group_stats.group_moments(
      whole.centred.reshape(-1), group_size, mask=half.reshape(-1)
    )
    for half in (lower, counted & ~lower)
  ]
  low, high = (half.mean for half in halves)
  s_low, s_high = (alpha, 1.0) if scaled == "lower" else (1.0, alpha)
  # In deviations from the mean of the group: equal rewards cancel exactly.
  gap = (s_low - s_high) * whole.mean - beta
  inter = jnp.where(
    lower,
    s_low * whole.centred - s_high * high + gap,
    s_high * whole.centred - s_low * low - gap,
  )
  intra = halves[0].centred + halves[1].centred
  compared = counted & (whole.count > 1)
  credit = mu * inter + (1.0 - mu) * intra
  return jnp.where(compared, credit, 0.0).reshape(-1)


def mean_over_tokens(
  values: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  eps: float = 1e-8,
) -> Float[Array, "N"]:
  """Mean of a completion's tokens, 0 without any.

    sum_t m_it v_it / (sum_t m_it + eps)

  Args:
    values: one a token; may hold anything outside the mask.
    mask: true on the policy's own tokens.
    eps: keeps the division finite.
  """
  chex.assert_equal_shape([values, mask])
  total = jnp.where(mask, values, 0.0).sum(axis=1)
  return total / (mask.sum(axis=1) + eps)


def check_conditional(*, mu: float, alpha: float, beta: float) -> None:
  """Raises ValueError for what conditional_advantages cannot take."""
  if not 0 <= mu <= 1:
    raise ValueError(f"mu must be in [0, 1], got {mu}.")
  if not 0 < alpha < float("inf"):
    raise ValueError(f"alpha must be positive and finite, got {alpha}.")
  if not abs(beta) < float("inf"):
    raise ValueError(f"beta must be finite, got {beta}.")
