"""The KL to the reference as part of the reward, where it is a constant."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import types
from jaxrl_llm.objectives import kl
from jaxrl_llm.transforms import chain, off_policy

# Estimators that mean something as a constant, by the names of
# penalties.REFERENCE_KL. k1 is the exact one here: a policy gradient on k1 as
# a reward is that of KL(pi || ref), on k3 it is not (Tang and Munos 2025,
# arXiv:2506.09477).
REWARD_KL = {
  "exact": kl.k1,
  "k1": kl.k1,
  "k2": kl.k2,
  "k3": kl.k3,
  "abs": kl.absolute,
  "low_var_kl": kl.low_var_kl,
}


def reward_kl(
  rewards: Float[Array, "N"],
  logprobs: Float[Array, "N T"],
  ref_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  coef: float | Float[Array, ""],
  estimator: Callable = kl.k1,
) -> tuple[Float[Array, "N"], Float[Array, ""]]:
  """Takes the KL of each completion to the reference out of its reward.

    r_i - coef sum_t m_it k(logprobs_it - ref_logprobs_it)

  Args:
    rewards: outcome of each completion.
    logprobs: of the policy that sampled, in nats; a constant.
    ref_logprobs: of the reference, in nats.
    mask: true on tokens that count.
    coef: reward per nat.
    estimator: k; k1 is RLOO's (with it advantages.token.kl_penalized_outcome),
      the others are verl's.

  Returns:
    The rewards, and the KL in nats a token, the mean over the completions of
    the mean over their tokens (what verl's controller follows).
  """
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  policy = jnp.where(mask, logprobs, 0.0)
  d = policy - jnp.where(mask, ref_logprobs, 0.0)
  total = jax.lax.stop_gradient(estimator(d)).sum(axis=1)
  lengths = mask.sum(axis=1)
  rows = jnp.maximum((lengths > 0).sum(), 1)
  mean = (total / jnp.maximum(lengths, 1)).sum() / rows
  return rewards - coef * total, mean


def kl_in_reward(
  coef: float | str, *, estimator: Callable = kl.k1
) -> types.RolloutTransform:
  """reward_kl as a transform; the method must need "ref_logprobs".

  Args:
    coef: reward per nat; a name reads a scalar of extras.
    estimator: d -> nats, 0 at d = 0; see REWARD_KL.

  Returns:
    A transform without state; it measures the metric "reference_kl".
  """

  def shape(rollout):
    if rollout.ref_logprobs is None:
      raise ValueError(
        "rollout.ref_logprobs is None: the method must name 'ref_logprobs' in"
        " `needs`."
      )
    rewards, measured = reward_kl(
      rollout.rewards,
      rollout.old_logprobs,
      rollout.ref_logprobs,
      rollout.mask & (rollout.weights > 0)[:, None],
      coef=rollout.extras[coef] if isinstance(coef, str) else coef,
      estimator=estimator,
    )
    found = {"reference_kl": measured}
    return off_policy.noted(rollout.replace(rewards=rewards), found)

  return chain.stateless(shape)
