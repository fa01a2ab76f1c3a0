"""GSPO: the ratio, and its clip, of whole completions instead of tokens.

    s_i  = exp(mean_t (logprobs - old_logprobs))
    loss = mean_i [-min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)]

with A as in GRPO. The mean over tokens has little noise and no trend in the
length, so the region is a thousandth of PPO's, and a completion is clipped as
a whole.

Against GRPO it changes:
  objective  the geometric mean of a completion's ratios in place of each, a
             far narrower region, no KL

Weigh by sequence: a mean over tokens would count a long completion's one
ratio once a token. For credit per token see gspo_token.

Traps: clip_low and clip_high bound a mean over tokens; with GRPO's 0.2 nothing
is ever clipped.

Zheng et al. 2025, GSPO, arXiv:2507.18071.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gspo(base.MethodConfig):
  """GSPO, as published (TRL importance_sampling_level: sequence)."""

  clip_low: float = 3e-4
  """how far the sequence's ratio may fall below 1; (0, 1] (TRL epsilon, verl
  clip_ratio_low)"""
  clip_high: float = 4e-4
  """how far the sequence's ratio may rise above 1; positive (TRL epsilon_high,
  verl clip_ratio_high)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        ratio=ratios.sequence_log_ratio,
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )
