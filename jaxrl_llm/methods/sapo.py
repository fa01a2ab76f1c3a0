"""SAPO: a sigmoid gate fades a token's gradient where PPO cuts it off.

    tau  = tau_pos if A > 0 else tau_neg
    loss = mean_i mean_t [-(4 / tau) sigmoid(tau (r - 1)) A]

with A as in GRPO. On-policy the gradient is GRPO's for any tau; it decays on
both sides of r = 1, sooner for negative advantages, which destabilise more.

Against GRPO it changes:
  objective  a smooth gate in place of the clip, no KL

Gao et al. 2025, SAPO, arXiv:2511.20347.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, soft_clips, weighting

# What r is the ratio of.
_LEVELS = {
  "token": ratios.token_log_ratio,
  "sequence": ratios.sequence_log_ratio,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sapo(base.MethodConfig):
  """SAPO, as published."""

  tau_pos: float = 1.0
  """steepness of the gate where A > 0; positive (TRL sapo_temperature_pos)"""
  tau_neg: float = 1.05
  """steepness of the gate elsewhere; positive (TRL sapo_temperature_neg)"""
  level: Literal["token", "sequence"] = "token"
  """r of each token, the paper's, or the mean of its sequence (TRL
  importance_sampling_level)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    soft_clips.check_positive(tau_pos=self.tau_pos, tau_neg=self.tau_neg)
    ratios.check_level("level", self.level)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        ratio=_LEVELS[self.level],
        surrogate=lambda tokens: soft_clips.sapo_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          tau_pos=self.tau_pos,
          tau_neg=self.tau_neg,
        ),
      ),
    )
