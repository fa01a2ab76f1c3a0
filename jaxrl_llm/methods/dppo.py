"""DPPO: the trust region is a divergence of policies, not a token's ratio.

    D    = |p - q|  (tv),  or the KL of (q, 1 - q) to (p, 1 - p)  (kl)
    keep = D within its bound, or the token moves back to q
    loss = sum_it [-keep sg(min(r, truncation)) A logprobs] / (number of tokens)

with p and q the token's probability now and before, A as in GRPO and sg() a
constant. A ratio of 2 is nothing for a token of probability 1e-5 and a lot for
one of 0.4; D knows the difference.

Against GRPO it changes:
  weighting  every token of the batch counts the same
  objective  a mask by divergence in place of the clip, no KL

The old policy is meant to be the one that sampled: train with the sampler's
log-probs as old_logprobs.

Qi et al. 2026, DPPO, arXiv:2602.04879.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import divergence, policy, weighting

_KEEP = {
  "tv": divergence.binary_tv_keep,
  "kl": divergence.binary_kl_keep,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dppo(base.MethodConfig):
  """DPPO, its binary approximation."""

  divergence: Literal["tv", "kl"] = "tv"
  """D: total variation, bounds in probability, or KL, in nats (verl loss_mode
  dppo_tv, dppo_kl)"""
  bound_low: float = 0.15
  """of D where A <= 0; positive; 0.05 is usual for kl (verl clip_ratio_low)"""
  bound_high: float = 0.15
  """of D where A > 0; positive; 0.05 is usual for kl (verl clip_ratio_high)"""
  truncation: float = 20.0
  """largest importance weight; 1 or more (verl clip_ratio_c)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    if self.divergence not in _KEEP:
      raise ValueError(
        f"divergence must be one of {', '.join(_KEEP)}; got"
        f" {self.divergence!r}."
      )
    divergence.check_bounds(self.bound_low, self.bound_high, self.truncation)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(surrogate=self._surrogate),
    )

  def _surrogate(self, tokens):
    keep = _KEEP[self.divergence](
      tokens.logprobs,
      tokens.old_logprobs,
      tokens.advantages,
      bound_low=self.bound_low,
      bound_high=self.bound_high,
    )
    return divergence.dppo_surrogate(
      tokens.logprobs,
      tokens.log_ratio,
      tokens.advantages,
      keep,
      truncation=self.truncation,
    )
