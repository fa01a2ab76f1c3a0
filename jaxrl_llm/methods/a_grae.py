"""A-GRAE: easy prompts first, hard ones later, steered by the mean reward.

    omega = mean of all rewards,  p = success rate of the group
    f    = omega / (2 sqrt(p)) + (1 - omega) / (2 sqrt(1 - p))
    A_i  = f A0_i where 0 < p < 1, else 0
    A_i  = min(1, omega / alpha) A_i where A_i > 0
    l    = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    loss = sum_it [(min(l, -dual_clip A) if A < 0 else l)
                   - entropy_coef * H_t] / M

with A0 as in GRPO or Dr. GRPO and M the number of tokens. GRPO's credit is
symmetric: as much for right as against wrong answers, and most at p = 1/2.
Here a weak policy is pushed away from failures more than towards its few
successes, which leaves probability for what was not sampled, and the prompts
that count most get harder as it improves.

Against GRPO it changes:
  advantage  reshaped by the group's difficulty, then damped where positive
  weighting  every token of the batch counts the same
  objective  a second bound, for negative advantages; no KL; an entropy bonus

The official code differs: in place of sqrt(1 - p) it has 1 - sqrt(p) (7.5 and
not 2 at p = 3/4), see easy_factor; and it reshapes only while a weight that
falls from 2 at step 0 is 2, which is no step at all, since steps are counted
from 1. Here every step is reshaped, as in the paper. DAPO's variant is
clip_high = 0.28. Our reading: rewards that are no 0 or 1 are taken for rates
as they are, unless `success` says from where on they are a success.

A-GRAE: Unveiling Implicit Advantage Symmetry, arXiv:2602.05548.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group, reshaping
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class AGrae(base.MethodConfig):
  """A-GRAE around GRPO's advantage, as published."""

  alpha: float = 1.0
  """mean reward below which positive advantages are damped; (0, 1] (paper: 1
  for mathematics, 0.5 for its other tasks)"""
  easy_factor: Literal["paper", "code"] = "paper"
  """for easy prompts 1 / sqrt(1 - p), or the code's 1 / (1 - sqrt(p) + eps)"""
  credit: Literal["grpo", "dr_grpo"] = "grpo"
  """A0: over the std of the group, or only centred (verl
  norm_adv_by_std_in_grpo)"""
  success: float | None = None
  """reward from which a completion is a success; None: rewards are rates"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  entropy_coef: float = 0.001
  """coefficient of the entropy bonus; 0: none (verl entropy_coeff)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward, and in the code's factor"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    reshaping.check_difficulty(alpha=self.alpha, easy_factor=self.easy_factor)
    if self.success is not None and not abs(self.success) < float("inf"):
      raise ValueError(f"success must be finite, got {self.success}.")
    penalties, needs = base.regularizers(entropy_coef=self.entropy_coef)
    return base.Method(
      advantage=self._advantage(),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )

  def _advantage(self):
    choices = {
      "grpo": base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      "dr_grpo": base.from_rewards(group.group_centred),
    }
    if self.credit not in choices:
      raise ValueError(
        f"credit must be one of {', '.join(choices)}; got {self.credit!r}."
      )
    estimate = choices[self.credit]
    return lambda rollout: reshaping.difficulty_reshaped(
      estimate(rollout),
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      alpha=self.alpha,
      easy_factor=self.easy_factor,
      success=self.success,
      eps=self.eps,
    )
