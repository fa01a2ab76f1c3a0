"""Everything that changes from step to step on the device."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.methods import base
from jaxrl_llm.training import critic as critics


@struct.dataclass
class TrainState:
  """The pytree that a train step maps to its successor.

  Attributes:
    step: [] int32, rollouts trained on so far.
    params: parameters that are trained: the policy's, or its adapter. float32,
      or what a method without gradients keeps them in.
    opt_state: of the optax optimizer, same layout as params; without gradients
      the parameters before the first step.
    method_state: of the method's rollout transform.
    critic_params: of the value head, or None without a critic.
    critic_opt_state: of its own optimizer, or None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  method_state: Any
  critic_params: Any = None
  critic_opt_state: Any = None


def init_state(
  params: Any,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  *,
  critic: critics.Critic | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    params: that are trained, of the policy.
    method: whose transform has a state.
    optimizer: of the policy.
    critic: for a method that needs values.
  """
  critic_params = critic.head.init(critic.width) if critic else None
  both = critics.Pair(params, critic_params)
  opt_state = critics.side_by_side(optimizer, critic).init(both)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state.policy,
    method_state=method.transform.init(),
    critic_params=critic_params,
    critic_opt_state=opt_state.critic,
  )
