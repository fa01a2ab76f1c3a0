"""Bypass mode: two policies instead of three, no forward for pi_old.

Around any method. With x the log-probability being trained and u the
sampler's, the sampler takes the place of the policy before the update:

    ppo_clip:  l = l_method(r = exp(x - u), A), no weight besides: the ratio is
               the correction, a weight of x over u would count it twice
    reinforce: the gradient of l is -A w dx, w = exp(x - u) bounded and
               constant, by token or by row
    loss = sum_it v_it keep_it l_it + (KL and other terms)

v being the weights of the method. Rules of rejection compare x, gradient
stopped, with u; what they drop has l = 0 and stays in the denominators, which
are made before x is known (verl recounts them, micro-batch by micro-batch).

Against GRPO it changes:
  objective  its old log-probabilities are the sampler's, or it is weighed

With "reinforce" the method's own surrogate is taken at ratio 1, where its
gradient is -A dx for GRPO's relatives: clips are out of play, its KL stays.

Yao et al. 2025, TIS; the two forms are verl's bypass_mode and its loss_type.
Ratio and bounds as in IcePop, arXiv:2510.18855.
"""

from collections.abc import Callable
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base, grpo, offpolicy_correction
from jaxrl_llm.transforms import (
  chain,
  off_policy,
  rejection,
  rollout_correction,
)

FORMS = ("ppo_clip", "reinforce")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bypass(base.MethodConfig):
  """Bypass mode around any method; the clipped form, as verl's default."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is trained against the sampler: any method"""
  form: Literal["ppo_clip", "reinforce"] = "ppo_clip"
  """the method's loss with the ratio to the sampler, or REINFORCE with weights
  (verl loss_type)"""
  level: Literal["token", "sequence", "geometric"] = "token"
  """of the weights of "reinforce": of a token, the product over its row, the
  geometric mean of its row (verl rollout_is)"""
  mode: Literal["truncate", "mask", "seq_mask"] = "truncate"
  """what happens to weights out of bounds, see offpolicy_correction"""
  low: float = 0.0
  """lower bound of a weight, in [0, 1]; 0: none"""
  high: float = 2.0
  """upper bound of a weight, at least 1 (verl rollout_is_threshold)"""
  reject: str = ""
  """rules, by commas, see offpolicy_correction (verl rollout_rs)"""
  reject_threshold: str = "0.5_2"
  """for each rule (verl rollout_rs_threshold)"""

  def build(self) -> base.Method:
    """Composes the method."""
    if self.form not in FORMS:
      raise ValueError(
        f"form must be one of {', '.join(FORMS)}; got {self.form!r}."
      )
    offpolicy_correction.check_band(self.low, self.high)
    band = {"level": self.level, "mode": self.mode}
    band |= {"low": self.low, "high": self.high}
    rollout_correction.check_weights(**band)
    against = _clipped if self.form == "ppo_clip" else _weighed(band)
    rules = rejection.parse(self.reject, self.reject_threshold)
    inner = self.method.build()
    return dataclasses.replace(
      inner,
      transform=chain.chain(inner.transform, off_policy.sampler_remembered()),
      objective=_bypassed(inner.objective, against, rules),
    )


def _bypassed(
  objective: types.ObjectiveFn, against: Callable, rules
) -> types.ObjectiveFn:
  """The objective on a rollout as seen from the sampler."""

  def bypassed(scores, rollout, advantages, weights):
    counted = rollout.mask & (weights != 0)
    now = jax.lax.stop_gradient(scores.logprobs)
    sampled = rollout.extras["sampler_logprobs"]
    keep = rejection.rejection_mask(now, sampled, counted, rules=rules)
    keep = keep.astype(now.dtype)
    rollout = against(rollout, now, sampled, counted)
    rollout = off_policy.multiplied(rollout, "keep", keep)
    loss, metrics = objective(scores, rollout, advantages, weights)
    dropped = jnp.where(counted, weights * (1.0 - keep), 0.0).sum()
    gap = rollout_correction.log_mismatch(now, sampled, counted)
    k3 = jnp.where(counted, weights * (jnp.expm1(gap) - gap), 0.0).sum()
    found = {"rejected_tokens": dropped, "rollout_k3": k3}
    return loss, metrics | jax.lax.stop_gradient(found)

  return bypassed


def _clipped(rollout, now, sampled, counted) -> types.Rollout:
  """The ratio is to the sampler; where it gave no number, 1."""
  del counted
  sampled = jnp.where(jnp.isnan(sampled), now, sampled)
  return rollout.replace(old_logprobs=sampled)


def _weighed(band) -> Callable:
  """The ratio is 1, and the loss weighed by what it would have been."""

  def weighed(rollout, now, sampled, counted):
    weights = rollout_correction.rollout_weights(now, sampled, counted, **band)
    rollout = off_policy.multiplied(rollout, "rollout_is", weights)
    return rollout.replace(old_logprobs=now)

  return weighed
