"""A bonus for right answers that the reference finds unusual."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import types
from jaxrl_llm.advantages import group
from jaxrl_llm.transforms import chain, off_policy
from pallas_kernels import group_stats

KINDS = ("rank", "zscore", "raw")


def log_perplexity(
  logprobs: Float[Array, "N T"], mask: Bool[Array, "N T"]
) -> Float[Array, "N"]:
  """Minus the mean log-probability of a completion's tokens; 0 without any.

  Args:
    logprobs: nats; may hold anything outside the mask.
    mask: true on the policy's own tokens.

  Returns:
    Nats a token; exp of it is the perplexity.
  """
  chex.assert_equal_shape([logprobs, mask])
  total = jnp.where(mask, logprobs, 0.0).sum(axis=1)
  return -total / jnp.maximum(mask.sum(axis=1), 1)


def novelty(
  surprise: Float[Array, "N"],
  correct: Bool[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  kind: str = "rank",
  most: float = 3.0,
) -> Float[Array, "N"]:
  """How unusual a correct completion is among the correct ones of its group.

    rank    (#{j: x_j < x_i} + #{j != i: x_j = x_i} / 2) / (c - 1)
    zscore  clip((x_i - mean_c) / (std_c + 1e-6), 0, 3) / 3
    raw     min(x_i, most) / most

  with x the surprise, over the c correct ones; 0 for c < 2 and for wrong ones.

  Args:
    surprise: log-perplexity under the reference, nats a token.
    correct: groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    kind: one of KINDS. Ranks have mean 1/2 and do not change under monotone
      maps of x.
    most: nats a token that count as 1, for raw.

  Returns:
    In [0, 1].

  Raises:
    ValueError: if kind is not one of them.

  References:
    arXiv:2605.29190, from its abstract; all three kinds are our reading.
  """
  check_kind(kind)
  chex.assert_equal_shape([surprise, correct])
  shape = (-1, group_size)
  counted = group.counted_rows(weights, surprise).reshape(shape)
  right = correct.reshape(shape) & counted
  x = jnp.where(right, surprise.reshape(shape), 0.0)
  many = right.sum(axis=1, keepdims=True)
  if kind == "rank":
    pairs = right[:, None, :] & ~jnp.eye(group_size, dtype=bool)[None]
    below = (pairs & (x[:, None, :] < x[:, :, None])).sum(axis=2)
    level = (pairs & (x[:, None, :] == x[:, :, None])).sum(axis=2)
    found = (below + 0.5 * level) / jnp.maximum(many - 1, 1)
  elif kind == "zscore":
    moments = group_stats.group_moments(
      x.reshape(-1), group_size, mask=right.reshape(-1)
    )
    score = moments.centred / (group.std(moments, ddof=0) + 1e-6)
    found = jnp.clip(score, 0.0, 3.0) / 3.0
  else:
    found = jnp.clip(x, 0.0, most) / most
  return jnp.where(right & (many > 1), found, 0.0).reshape(-1)


def novelty_bonus(
  *,
  coef: float = 0.2,
  kind: str = "rank",
  most: float = 3.0,
  threshold: float = 0.5,
  on_solved: bool = True,
) -> types.RolloutTransform:
  """Adds coef * novelty under the reference to the rewards.

  Args:
    coef: reward of the most unusual correct completion, 0 or more.
    kind: see novelty.
    most: see novelty.
    threshold: a completion is correct above this reward.
    on_solved: False leaves groups alone in which all rows are correct.

  Returns:
    A transform without state; its metric "novelty" is the mean over rows.

  Raises:
    ValueError: for values out of these ranges.
  """
  check_kind(kind)
  for name, value in (("coef", coef), ("threshold", threshold)):
    if not abs(value) < float("inf"):
      raise ValueError(f"{name} must be finite, got {value}.")
  if coef < 0:
    raise ValueError(f"coef must be 0 or more, got {coef}.")
  if not 0 < most < float("inf"):
    raise ValueError(f"most must be positive and finite, got {most}.")

  def shape(rollout):
    size = rollout.group_size
    correct = rollout.rewards > threshold
    found = novelty(
      log_perplexity(rollout.ref_logprobs, rollout.mask),
      correct,
      rollout.weights,
      group_size=size,
      kind=kind,
      most=most,
    )
    counted = rollout.weights > 0
    if not on_solved:
      wrong = (counted & ~correct).reshape(-1, size).any(axis=1)
      found = jnp.where(jnp.repeat(wrong, size), found, 0.0)
    mean = found.sum() / jnp.maximum(counted.sum(), 1)
    rollout = rollout.replace(rewards=rollout.rewards + coef * found)
    return off_policy.noted(rollout, {"novelty": mean})

  return chain.stateless(shape)


def check_kind(kind: str) -> None:
  """Raises ValueError unless it is one of KINDS."""
  if kind not in KINDS:
    raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
