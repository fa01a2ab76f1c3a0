"""Everything that changes from step to step on the device."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.methods import base


@struct.dataclass
class TrainState:
  """The pytree that a train step maps to its successor.

  Attributes:
    step: [] int32, rollouts trained on so far.
    params: float32 parameters.
    opt_state: of the optax optimizer, same layout as params.
    method_state: of the method's rollout transform.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  method_state: Any


def init_state(
  params: Any, method: base.Method, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    method_state=method.transform.init(),
  )
