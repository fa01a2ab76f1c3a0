"""Numbers that follow the step, or the batch, as scalars of extras.

A schedule is written into extras by name, where an advantage or an objective
reads it, and into the step's metrics.
"""

from collections.abc import Callable
import math

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm import types
from jaxrl_llm.transforms import off_policy


@struct.dataclass
class StepState:
  """What scheduled remembers."""

  step: jax.Array  # [] int32, steps before this one


def cosine_restart(
  step: Int[Array, "..."] | int,
  *,
  high: float,
  low: float,
  warmup: int = 30,
  cycle: int = 40,
) -> Float[Array, "..."]:
  """Rises linearly, then falls along a cosine, again and again.

    high (step + 1) / warmup                                  step < warmup
    low + (high - low) / 2 (1 + cos(pi ((step - warmup) mod cycle) / cycle))

  `low` itself is never reached: the next cycle begins at `high`.

  Args:
    step: from 0.
    high: where a cycle begins.
    low: where it tends to.
    warmup: steps of the rise; 0: none.
    cycle: steps of a fall, at least 1.

  References:
    As CANON's code has it, arXiv:2509.23962.
  """
  step = jnp.asarray(step)
  since = jnp.maximum(step - warmup, 0) % cycle
  # cos^2 of half the angle: 1 + cos would lose its digits near the end.
  half = jnp.cos(math.pi / 2 * since / cycle) ** 2
  fall = low + (high - low) * half
  rise = high * (step + 1) / max(warmup, 1)
  return jnp.where(step < warmup, rise, fall)


def scheduled(
  name: str,
  schedule: Callable[[Int[Array, ""], types.Rollout], Float[Array, ""]],
) -> types.RolloutTransform:
  """Writes extras[name]: what the schedule says of this step and its rollout.

  Args:
    name: of the scalar, which is a metric too.
    schedule: (steps before this one, rollout) -> a scalar.

  Returns:
    A transform with state StepState.
  """

  def init():
    return StepState(step=jnp.zeros((), jnp.int32))

  def update(rollout, state):
    value = schedule(state.step, rollout).astype(jnp.float32)
    rollout = rollout.replace(extras=rollout.extras | {name: value})
    rollout = off_policy.noted(rollout, {name: value})
    return rollout, StepState(step=state.step + 1)

  return types.RolloutTransform(init, update)


def mean_reward(rollout: types.Rollout) -> Float[Array, ""]:
  """Of the rows that count, between 0 and 1; 0 where none does."""
  counted = rollout.weights > 0
  total = jnp.where(counted, rollout.rewards, 0.0).sum()
  return jnp.clip(total / jnp.maximum(counted.sum(), 1), 0.0, 1.0)
