"""Rewards changed by what the rollout shows, before advantages are taken."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import types
from jaxrl_llm.transforms import chain


def soft_overlong(
  lengths: Int[Array, "N"],
  *,
  max_length: int,
  buffer: int,
  factor: float,
  bounded: bool = True,
) -> Float[Array, "N"]:
  """Penalty that grows linearly in the last tokens before the limit (DAPO).

    e = n - (L - C)
    penalty = -factor * clip(e / C, 0, 1)     bounded (TRL, OpenRLHF)
    penalty = -factor * max(e / C, 0)         else (verl, AReaL)

  Continuous at L - C and never rising with n; bounded, it is in [-factor, 0].
  The two are equal up to L, which a completion can pass only when the limit is
  set below the run's own: bounded is the default because the penalty then
  stays comparable with the reward. C = 0 is the bounded step at L.

  Args:
    lengths: n, tokens of each completion.
    max_length: L, tokens (TRL max_completion_len, verl max_resp_len).
    buffer: C, tokens; in [0, max_length] (TRL soft_punish_cache, verl
      overlong_buffer_len).
    factor: reward lost at max_length (verl penalty_factor).
    bounded: False lets it grow beyond max_length; then C is at least 1.

  Returns:
    Penalties in units of reward.

  Raises:
    ValueError: if buffer is out of range or factor is negative.

  References:
    Yu et al. 2025, arXiv:2503.14476, eq. 13.
  """
  check_overlong(
    buffer=buffer, max_length=max_length, factor=factor, bounded=bounded
  )
  chex.assert_rank(lengths, 1)
  over = lengths - (max_length - buffer)
  if not buffer:
    return -factor * (over > 0)
  return -factor * jnp.clip(over / buffer, 0.0, 1.0 if bounded else None)


def stop_properly(
  rewards: Float[Array, "N"], truncated: Bool[Array, "N"], *, coef: float
) -> Float[Array, "N"]:
  """Lowers, or sets, the reward of completions that ran into the limit.

    r = coef * r if coef >= 0, else coef      where truncated

  Args:
    rewards: outcome of each completion.
    truncated: true where it ended by length.
    coef: 1 changes nothing, 0 takes the reward; a negative one is the reward
      itself (OpenRLHF and NeMo RL stop_properly_penalty_coef; NeMo RL knows
      only those from 0 to 1).

  Raises:
    ValueError: if coef is not finite.
  """
  check_stop_properly(coef)
  chex.assert_equal_shape([rewards, truncated])
  lowered = coef * rewards if coef >= 0 else jnp.full_like(rewards, coef)
  return jnp.where(truncated, lowered, rewards)


def overlong_penalty(
  *,
  buffer: int | None,
  max_length: int | None = None,
  factor: float = 1.0,
  bounded: bool = True,
) -> types.RolloutTransform:
  """Adds soft_overlong of each completion's own tokens to its reward.

  Args:
    buffer: length of the penalised zone, in tokens; None takes a fifth of the
      limit, as the paper's 4096 of 20480.
    max_length: limit in tokens; None takes T, the rollout's own.
    factor: reward lost at the limit.
    bounded: whether the penalty stays at -factor beyond the limit.

  Returns:
    A transform; a buffer longer than the limit raises ValueError, at the
    latest when the first rollout is traced.
  """
  knobs = {"factor": factor, "bounded": bounded}
  check_overlong(
    buffer=1 if buffer is None else buffer, max_length=max_length, **knobs
  )

  def shape(rollout):
    limit = rollout.mask.shape[1] if max_length is None else max_length
    penalty = soft_overlong(
      rollout.mask.sum(axis=1),
      max_length=limit,
      buffer=max(limit // 5, 1) if buffer is None else buffer,
      **knobs,
    )
    return rollout.replace(rewards=rollout.rewards + penalty)

  return chain.stateless(shape)


def stop_properly_penalty(coef: float) -> types.RolloutTransform:
  """Applies stop_properly where a completion's finish_reason is the length."""
  check_stop_properly(coef)

  def shape(rollout):
    truncated = rollout.finish_reason == types.FINISH_LENGTH
    return rollout.replace(
      rewards=stop_properly(rollout.rewards, truncated, coef=coef)
    )

  return chain.stateless(shape)


def check_overlong(
  *, buffer: int, max_length: int | None, factor: float, bounded: bool = True
) -> None:
  """Raises ValueError unless 0 <= buffer <= max_length and factor >= 0."""
  if max_length is not None and max_length < 1:
    raise ValueError(f"max_length must be at least 1 token, got {max_length}.")
  if buffer < 0:
    raise ValueError(f"buffer must be 0 tokens or more, got {buffer}.")
  if not buffer and not bounded:
    raise ValueError(
      "buffer must be at least 1 token when the penalty is not bounded, got 0."
    )
  if max_length is not None and buffer > max_length:
    raise ValueError(
      f"buffer must be in [0, {max_length}] tokens, the longest completion,"
      f" got {buffer}."
    )
  if not 0 <= factor < float("inf"):
    raise ValueError(
      f"the overlong factor must be 0 or more and finite, got {factor}."
    )


def check_stop_properly(coef: float) -> None:
  """Raises ValueError unless coef is finite."""
  if not abs(coef) < float("inf"):
    raise ValueError(f"the stop-properly coef must be finite, got {coef}.")
