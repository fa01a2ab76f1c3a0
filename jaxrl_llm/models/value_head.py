"""A critic on the policy's own hidden states: one number a position."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.models import api


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHead:
  """Expected return from a position on, linear in its final hidden state.

    v_t = h_t . weight + bias

  h_t is what the next token is predicted from, so v_t has not seen it. The
  parameters are no part of the model's: neither the sampler nor the reference
  nor an export knows them.

  Attributes:
    trunk_gradient: share of the gradient of v that goes on into the hidden
      states, in [0, 1]: 0 leaves the policy alone, 1 is PPO with a shared
      trunk.
    rate: learning rate of the head over the policy's.
  """

  trunk_gradient: float = 0.0
  rate: float = 10.0

  def __post_init__(self):
    """Raises ValueError for numbers that cannot be."""
    if not 0 <= self.trunk_gradient <= 1:
      raise ValueError(
        f"trunk_gradient must be in [0, 1], got {self.trunk_gradient}."
      )
    api.check_rate("critic_rate", self.rate)

  def init(self, key: jax.Array, model: api.LanguageModel) -> api.Params:
    """Zeros: a critic that knows nothing says 0."""
    del key
    return {"weight": jnp.zeros((model.config.width,)), "bias": jnp.zeros(())}

  def apply(
    self, params: api.Params, hidden: Float[Array, "N T D"]
  ) -> Float[Array, "N T"]:
    """Values in units of reward, float32 whatever the model's dtype.

    Args:
      params: from init.
      hidden: final hidden states.
    """
    chex.assert_rank(hidden, 3)
    weight = params["weight"]
    chex.assert_axis_dimension(hidden, 2, weight.shape[0])
    hidden = hidden.astype(weight.dtype)
    constant = jax.lax.stop_gradient(hidden)
    if self.trunk_gradient:
      hidden = constant + self.trunk_gradient * (hidden - constant)
    else:
      hidden = constant
    return (hidden * weight[None, None, :]).sum(axis=-1) + params["bias"]
