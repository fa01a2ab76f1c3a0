"""Rewards changed by what the rollout shows, before advantages are taken."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm import types
from jaxrl_llm.transforms import chain


def soft_overlong(
  lengths: Int[Array, "N"], *, max_length: int, buffer: int, factor: float
) -> Float[Array, "N"]:
  """Penalty that grows linearly in the last tokens before the limit (DAPO).

    e = n - (L - C)
    penalty = -factor * clip(e / C, 0, 1)

  Continuous at L - C, never rising with n, in [-factor, 0]. Bounded beyond L
  as in TRL and OpenRLHF (verl lets it grow).

  Args:
    lengths: n, tokens of each completion.
    max_length: L, tokens.
    buffer: C, tokens; in [1, max_length].
    factor: reward lost at max_length.

  Returns:
    Penalties in units of reward.

  Raises:
    ValueError: if buffer is not in [1, max_length] or factor is negative.

  References:
    Yu et al. 2025, arXiv:2503.14476, eq. 13.
  """
  check_overlong(buffer=buffer, max_length=max_length, factor=factor)
  chex.assert_rank(lengths, 1)
  over = (lengths - (max_length - buffer)) / buffer
  return -factor * jnp.clip(over, 0.0, 1.0)


def overlong_penalty(
  *, buffer: int, max_length: int | None = None, factor: float = 1.0
) -> types.RolloutTransform:
  """Adds soft_overlong of each completion's own tokens to its reward.

  Args:
    buffer: length of the penalised zone, in tokens.
    max_length: limit in tokens; None takes T, the rollout's own.
    factor: reward lost at the limit.

  Returns:
    A transform; a buffer longer than the limit raises ValueError, at the
    latest when the first rollout is traced.
  """

  check_overlong(buffer=buffer, max_length=max_length, factor=factor)

  def shape(rollout):
    penalty = soft_overlong(
      rollout.mask.sum(axis=1),
      max_length=_limit(max_length, rollout),
      buffer=buffer,
      factor=factor,
    )
    return rollout.replace(rewards=rollout.rewards + penalty)

  return chain.stateless(shape)


def check_overlong(
  *, buffer: int, max_length: int | None, factor: float
) -> None:
  """Raises ValueError unless 1 <= buffer <= max_length and factor >= 0."""
  if buffer < 1:
    raise ValueError(f"buffer must be at least 1 token, got {buffer}.")
  if max_length is not None and buffer > max_length:
    raise ValueError(
      f"buffer must be in [1, {max_length}] tokens, the longest completion,"
      f" got {buffer}."
    )
  if not 0 <= factor < float("inf"):
    raise ValueError(
      f"the overlong factor must be 0 or more and finite, got {factor}."
    )


def _limit(max_length, rollout) -> int:
  return rollout.mask.shape[1] if max_length is None else max_length
