"""Dual clip: GRPO whose loss is bounded also for unlikely bad tokens.

    l    = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    loss = mean_i mean_t [min(l, -dual_clip A) if A < 0 else l]

with A as in GRPO. PPO's clip does not bound -r A for negative A: one token
whose ratio explodes can be the whole update. Beyond r = dual_clip it has no
gradient.

Against GRPO it changes:
  objective  a second bound, for negative advantages, no KL

TRL's delta (INTELLECT-2 has 4) is the same number, as long as it is above
1 + clip_high; surrogates.two_sided_surrogate is its general form.

Ye et al. 2019, dual-clip PPO, arXiv:1912.09729.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualClip(base.MethodConfig):
  """GRPO with dual clip, as verl has it by default."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c, TRL delta)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        ),
      ),
    )
