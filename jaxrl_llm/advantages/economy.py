"""Right answers, and what they cost: two channels of credit (HDPO)."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group


def tool_rewards(
  right: Bool[Array, "N"], tools: Int[Array, "N"]
) -> Float[Array, "N"]:
  """1 for a right answer without a tool, less with each; 0 for a wrong one.

    right_i / (tools_i + 1)

  Args:
    right: answers that are.
    tools: calls in each completion, 0 or more.
  """
  chex.assert_equal_shape([right, tools])
  return jnp.where(right, 1.0 / (tools + 1.0), 0.0)


def accuracy_credit(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  eps: float = 1e-6,
  scale: bool = True,
) -> Float[Array, "N"]:
  """group_normalized, and the reward itself for groups of one.

    A_i = (r_i - mean_g) / (std_g + eps);  r_i / (1 + eps)  if G = 1

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 1, must divide N.
    eps: added to the std over G - 1, in units of reward.
    scale: whether to divide.

  References:
    verl's GRPO has groups of one so; HDPO, Accio-Lab/Metis.
  """
  if group_size == 1:
    counted = group.counted_rows(weights, rewards)
    divisor = 1.0 + eps if scale else 1.0
    return jnp.where(counted, rewards, 0.0) / divisor
  knobs = {"group_size": group_size}
  if not scale:
    return group.group_centred(rewards, weights, **knobs)
  return group.group_normalized(rewards, weights, **knobs, eps=eps)


def economy_credit(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  eps: float = 1e-6,
  scale: bool = True,
) -> Float[Array, "N"]:
  """Compares the right answers of a group among themselves.

    A_i = (r_i - mean_Q) / (std_Q + eps)  for i in Q,  Q = {i in g: r_i > 0}

  0 outside Q, and where Q has fewer than two: what a wrong answer cost is
  nobody's concern.

  Args:
    rewards: of tool_rewards, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 1, must divide N.
    eps: added to the std over |Q| - 1, in units of reward.
    scale: whether to divide.

  Returns:
    Credit that sums to zero in each group.

  References:
    HDPO, Accio-Lab/Metis.
  """
  if group_size == 1:
    return jnp.zeros_like(rewards)
  counted = group.counted_rows(weights, rewards) & (rewards > 0)
  return accuracy_credit(
    rewards,
    counted.astype(rewards.dtype),
    group_size=group_size,
    eps=eps,
    scale=scale,
  )
