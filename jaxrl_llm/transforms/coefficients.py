"""Coefficients that follow a measurement.

A transform writes the coefficient of this step into extras, where a Penalty
or another transform reads it by name, and learns from the step's metrics.
"""

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.transforms import off_policy


@struct.dataclass
class KlCoefState:
  """What adaptive_kl remembers."""

  coef: jax.Array  # [] float, of the next step
  rows: jax.Array  # [] float, rows that counted in this step


@struct.dataclass
class EntropyCoefState:
  """What adaptive_entropy remembers."""

  coef: jax.Array  # [] float, of the next step if its entropy is low
  last: jax.Array  # [] float, entropy of the last step in nats; inf before it


def next_kl_coef(
  coef: Float[Array, ""],
  measured: Float[Array, ""],
  rows: Float[Array, ""],
  *,
  target: float = 0.1,
  horizon: float = 10_000,
) -> Float[Array, ""]:
  """Raises the coefficient where the KL is above its target, else lowers it.

    coef (1 + clip(KL / target - 1, -0.2, 0.2) rows / horizon)

  Args:
    coef: of the step that was measured.
    measured: KL of that step, in nats a token.
    rows: completions in that step (verl's n_steps).
    target: nats a token (verl target_kl).
    horizon: completions in which the coefficient changes by at most a fifth.

  References:
    Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
  """
  error = jnp.clip(measured / target - 1.0, -0.2, 0.2)
  return coef * (1.0 + error * rows / horizon)


def next_entropy_coef(
  coef: Float[Array, ""],
  measured: Float[Array, ""],
  *,
  target: float = 0.2,
  delta: float = 0.005,
  low: float = 0.0,
  high: float = 1.0,
) -> Float[Array, ""]:
  """One step up where the entropy is at or below its target, else down.

    clip(coef + delta, low, high)  if H <= target,  else  coef - delta

  Args:
    coef: of the step that was measured.
    measured: H, mean entropy of that step, in nats a token.
    target: nats a token (TRL entropy_target).
    delta: step (TRL entropy_coef_delta).
    low: least coefficient (TRL entropy_coef_min).
    high: greatest coefficient (TRL entropy_coef_max).

  References:
    He et al. 2025, Skywork-OR1, arXiv:2505.22312.
  """
  step = jnp.where(measured <= target, delta, -delta)
  return jnp.clip(coef + step, low, high)


def adaptive_kl(
  *, init: float = 0.001, target: float = 0.1, horizon: float = 10_000
) -> types.RolloutTransform:
  """Writes extras["kl_coef"] and follows the metric "reference_kl".

  Args:
    init: coefficient of the first step, positive.
    target: nats a token, positive.
    horizon: completions, positive; see next_kl_coef.

  Returns:
    A transform with state KlCoefState; a step in which no row counts leaves
    the coefficient as it is.

  Raises:
    ValueError: if one of them is not positive.
  """
  for name, value in (("init", init), ("target", target), ("horizon", horizon)):
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {value}.")

  def start():
    return KlCoefState(coef=jnp.asarray(init, float), rows=jnp.zeros(()))

  def update(rollout, state):
    counted = (rollout.weights > 0) & rollout.mask.any(axis=1)
    rows = counted.sum().astype(state.rows.dtype)
    return _written(rollout, "kl_coef", state.coef), state.replace(rows=rows)

  def observe(state, metrics):
    measured = metrics["reference_kl"]
    coef = next_kl_coef(
      state.coef, measured, state.rows, target=target, horizon=horizon
    )
    return state.replace(coef=coef.astype(state.coef.dtype))

  return types.RolloutTransform(start, update, observe)


def adaptive_entropy(
  measure: Callable[[types.Metrics], Float[Array, ""]],
  *,
  init: float = 0.0,
  target: float = 0.2,
  delta: float = 0.005,
  low: float = 0.0,
  high: float = 1.0,
) -> types.RolloutTransform:
  """Writes extras["entropy_coef"]: the coefficient, or 0 when it is not needed.

  It is applied only if the entropy of the last step was at or below the
  target; so never in the first step.

  Args:
    measure: the step's metrics -> mean entropy in nats a token.
    init: coefficient before the first step, in [low, high].
    target: nats a token; see next_entropy_coef for this and the rest.
    delta: step, positive.
    low: least coefficient.
    high: greatest coefficient.

  Returns:
    A transform with state EntropyCoefState.

  Raises:
    ValueError: if init is out of bounds, or delta or target not positive.
  """
  if not 0 <= low <= init <= high < float("inf"):
    raise ValueError(
      f"entropy coefficients must have 0 <= low <= init <= high, got {low},"
      f" {init} and {high}."
    )
  for name, value in (("delta", delta), ("target", target)):
    if not 0 < value < float("inf"):
      raise ValueError(
        f"entropy {name} must be positive and finite, got {value}."
      )

  def start():
    return EntropyCoefState(
      coef=jnp.asarray(init, float), last=jnp.asarray(jnp.inf, float)
    )

  def update(rollout, state):
    applied = jnp.where(state.last <= target, state.coef, 0.0)
    return _written(rollout, "entropy_coef", applied), state

  def observe(state, metrics):
    last = measure(metrics).astype(state.last.dtype)
    coef = next_entropy_coef(
      state.coef, last, target=target, delta=delta, low=low, high=high
    )
    return EntropyCoefState(coef=coef, last=last)

  return types.RolloutTransform(start, update, observe)


def _written(rollout, name, value) -> types.Rollout:
  """The rollout with a scalar, which is a metric too."""
  rollout = rollout.replace(extras=rollout.extras | {name: value})
  return off_policy.noted(rollout, {name: value})
