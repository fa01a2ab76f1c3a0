"""LUSPO: GSPO without its bias to short completions.

    loss = mean_i sum_t [-min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high)
                              A_i)]

with s_i as in GSPO and A as in GRPO. The gradient of s_i spreads 1 / n_i of
it over each token; the sum over tokens undoes that, so a token is pushed the
same in a short and in a long completion.

Against GRPO it changes:
  weighting  tokens are added up, not averaged, in a completion
  objective  the geometric mean of a completion's ratios in place of each, a
             far narrower region, no KL

The loss grows with the length; so does the gradient's norm.

Traps: clip_low and clip_high bound a mean over tokens; with GRPO's 0.2 nothing
is ever clipped.

LUSPO, 2026, arXiv:2602.05261.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Luspo(base.MethodConfig):
  """LUSPO, as TRL has it (loss_type: luspo)."""

  clip_low: float = 3e-4
  """how far the sequence's ratio may fall below 1; (0, 1] (TRL epsilon)"""
  clip_high: float = 4e-4
  """how far the sequence's ratio may rise above 1; positive (TRL
  epsilon_high)"""
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
      weighting=weighting.sequence_sum,
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
