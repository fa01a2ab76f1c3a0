"""OPSM: drops failures that the policy has already moved away from.

Off-policy sequence masking, around any method. With x the log-probability
being trained, gradient stopped, and u the sampler's,

    keep = not (A < 0 and mean_t (u - x) > delta)
    loss = sum_it v_it keep_it l_it + (KL and other terms, of all tokens)

with v and l the weights and the policy loss of the method. To push further
down what the policy would no longer say moves it in directions that nobody
asked for; what went well is kept however old it is.

Against GRPO it changes:
  objective  the policy loss of such rows is 0; they stay in the denominators

DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base, grpo
from jaxrl_llm.transforms import chain, off_policy, off_policy_masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opsm(base.MethodConfig):
  """OPSM around any method."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is masked: any method"""
  delta: float = 0.5
  """nats a token that a failure may be behind by (TRL
  off_policy_mask_threshold, its example; slime opsm_delta 1e-4)"""

  def build(self) -> base.Method:
    """Composes the method."""
    off_policy_masks.check_delta(self.delta)
    inner = self.method.build()
    return dataclasses.replace(
      inner,
      transform=chain.chain(inner.transform, off_policy.sampler_remembered()),
      objective=_masked(inner.objective, self.delta),
    )


def _masked(objective: types.ObjectiveFn, delta: float) -> types.ObjectiveFn:
  """The objective, its policy loss 0 on rows that OPSM drops."""

  def masked(scores, rollout, advantages, weights):
    counted = rollout.mask & (weights != 0)
    keep = off_policy_masks.off_policy_sequence_mask(
      scores.logprobs,
      rollout.extras["sampler_logprobs"],
      advantages,
      counted,
      delta=delta,
    ).astype(scores.logprobs.dtype)
    rollout = off_policy.multiplied(rollout, "keep", keep)
    loss, metrics = objective(scores, rollout, advantages, weights)
    dropped = jnp.where(counted, weights * (1.0 - keep), 0.0).sum()
    return loss, metrics | {"opsm_fraction": jax.lax.stop_gradient(dropped)}

  return masked
