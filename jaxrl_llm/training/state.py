"""Everything that changes from step to step on the device."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.methods import base
from jaxrl_llm.training import heads


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
    head_params: of what the method learns beside the policy, or None.
    head_opt_state: of its own optimizer, or None.
    shadow: slow average of params, of a method that asks for one, or None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  method_state: Any
  head_params: Any = None
  head_opt_state: Any = None
  shadow: Any = None


def init_state(
  params: Any,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  *,
  head: heads.AuxiliaryHead | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    params: that are trained, of the policy.
    method: whose transform has a state.
    optimizer: of the policy.
    head: of a method that has one.
  """
  both = heads.Pair(params, head.init() if head else None)
  opt_state = heads.side_by_side(optimizer, head).init(both)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state.policy,
    method_state=method.transform.init(),
    head_params=both.head,
    head_opt_state=opt_state.head,
    # Not the same buffers: a step gives up both.
    shadow=jax.tree.map(jnp.copy, params) if method.shadow else None,
  )
