"""Pass@k: credit for the best completion of a group, for being the best.

    A_i  = (r_i - r_second) / (std_g + eps) for the best row, 0 for the others
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]

This is max(all) - max(all but i): the policy gradient of the expected best
of G samples, with a leave-one-out baseline. A tie at the top teaches nothing.

Against GRPO it changes:
  advantage  the lead of the best over the second, for the best alone
  objective  no KL by default

Tang et al. 2025, Inference Time Objectives, arXiv:2503.19595.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import baselines, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasskAdvantage(base.MethodConfig):
  """The top-1 form, as verl's grpo_passk."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  normalize: bool = True
  """divides by the std of the group (verl norm_adv_by_std_in_grpo); False is
  the exact gradient of the paper"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      advantage=base.from_rewards(
        baselines.best_minus_second,
        normalize=self.normalize,
        ddof=self.ddof,
        eps=self.eps,
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )
