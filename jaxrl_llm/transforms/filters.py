"""Rows that are dropped, by weighing them 0: shapes never change."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import types
from jaxrl_llm.transforms import chain
from pallas_kernels import group_stats


def drop_uniform_groups() -> types.RolloutTransform:
  """Weighs groups 0 whose counted rewards are all equal.

  Such a group has no gradient but would be in the denominator of the loss.
  The batch gets smaller by it; dynamic sampling, which fills it up again with
  other prompts, is a plan (rollout.dynamic_sampling).
  Rows already weighed 0 are not looked at. Compares rewards exactly, as they
  are where the transform stands in a chain.

  References:
    Yu et al. 2025, arXiv:2503.14476, section 3.2.
  """

  def drop(rollout):
    uniform = uniform_groups(
      rollout.rewards, rollout.weights, group_size=rollout.group_size
    )
    rows = jnp.repeat(uniform, rollout.group_size)
    return rollout.replace(weights=jnp.where(rows, 0.0, rollout.weights))

  return chain.stateless(drop)


def drop_solved_groups(best: float) -> types.RolloutTransform:
  """Weighs groups 0 whose counted rewards all reach `best`.

  Nothing is left to learn from them, but their tokens would be in the
  denominator of the loss. Groups of equal lower rewards stay, for methods that
  learn from failures alone.

  Args:
    best: reward of a correct completion.

  References:
    NGRPO, arXiv:2509.18851.
  """

  def drop(rollout):
    short = (rollout.weights > 0) & ~(rollout.rewards >= best)
    solved = ~short.reshape(-1, rollout.group_size).any(axis=1)
    rows = jnp.repeat(solved, rollout.group_size)
    return rollout.replace(weights=jnp.where(rows, 0.0, rollout.weights))

  return chain.stateless(drop)


def keep_means_between(low: float, high: float) -> types.RolloutTransform:
  """Weighs groups 0 whose mean counted reward is not between low and high.

  With rewards of 0 and 1 that mean is the accuracy of the group.

  Args:
    low: a mean at most this is dropped.
    high: a mean at least this is dropped.

  Raises:
    ValueError: if low is not below high.
  """
  if not low < high:
    raise ValueError(f"low must be below high, got {low} and {high}.")

  def drop(rollout):
    found = group_stats.group_moments(
      rollout.rewards, rollout.group_size, mask=rollout.weights > 0
    )
    kept = (found.mean > low) & (found.mean < high)
    rows = jnp.repeat(kept[:, 0], rollout.group_size)
    return rollout.replace(weights=jnp.where(rows, rollout.weights, 0.0))

  return chain.stateless(drop)


def without_truncated(rollout: types.Rollout) -> types.Rollout:
  """Weighs rows 0 that ended by length (overlong filtering).

  Such a row leaves the loss, every denominator and the entropy bonus. As a
  selection, after the advantages, its reward stays in the baseline of its
  group (TRL mask_truncated_completions, DAPO); as a transform, see
  drop_truncated, it leaves that too.

  References:
    Yu et al. 2025, arXiv:2503.14476, section 3.4.
  """
  finished = rollout.finish_reason != types.FINISH_LENGTH
  return rollout.replace(weights=jnp.where(finished, rollout.weights, 0.0))


def drop_truncated() -> types.RolloutTransform:
  """without_truncated before advantages are taken: as if never sampled."""
  return chain.stateless(without_truncated)


def uniform_groups(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"],
  *,
  group_size: int,
) -> Bool[Array, "B"]:
  """True for groups that teach nothing: at most one distinct counted reward.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive.
    group_size: G; must divide N.
  """
  chex.assert_equal_shape([rewards, weights])
  chex.assert_is_divisible(rewards.shape[0], group_size)
  found = group_stats.group_moments(rewards, group_size, mask=weights > 0)
  return found.equal[:, 0]


def zero_variance_share(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"],
  *,
  group_size: int,
) -> Float[Array, ""]:
  """Share of groups in [0, 1] that teach nothing: why a loss can be 0.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive.
    group_size: G; must divide N.
  """
  return uniform_groups(rewards, weights, group_size=group_size).mean()
