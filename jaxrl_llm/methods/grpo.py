"""GRPO: rewards standardised inside each group are the advantages; no critic.

The base of every method here: sibling completions are the baseline, PPO's
clip is the trust region, and a KL term holds the policy near the reference.

    A_i  = (r_i - mean_g) / (std_g + eps)
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                          + beta * KL_t - entropy_coef * H_t]

Shao et al. 2024, DeepSeekMath, arXiv:2402.03300.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import batch, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grpo(base.MethodConfig):
  """GRPO, as published except that the KL has the exact gradient."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1] (TRL epsilon, verl
  clip_ratio_low)"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive (TRL epsilon_high, verl
  clip_ratio_high)"""
  beta: float = 0.04
  """coefficient of the KL to the reference model; 0: no reference is run (TRL
  beta, verl kl_loss_coef)"""
  kl: base.KlName = "exact"
  """estimator of the KL term: exact in value and gradient; k3, the paper's,
  has the gradient of the other direction; the rest: objectives.kl (TRL
  use_bias_correction_kl: ratio_k3; verl kl_loss_type)"""
  entropy_coef: float = 0.0
  """coefficient of an entropy bonus, not in the paper; 0: none (verl
  entropy_coeff)"""
  scale: Literal["group", "batch", "none"] = "group"
  """divides by the std of the group (the paper), of the batch's rewards, or
  not at all (TRL scale_rewards, verl norm_adv_by_std_in_grpo)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    penalties, needs = base.regularizers(
      beta=self.beta, kl=self.kl, entropy_coef=self.entropy_coef
    )
    return base.Method(
      advantage=self._advantage(),
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

  def _advantage(self):
    knobs = {"ddof": self.ddof, "eps": self.eps}
    choices = {
      "group": base.from_rewards(group.group_normalized, **knobs),
      "batch": base.from_rewards(batch.batch_normalized, **knobs),
      "none": base.from_rewards(group.group_centred),
    }
    if self.scale not in choices:
      raise ValueError(
        f"scale must be one of {', '.join(choices)}; got {self.scale!r}."
      )
    return choices[self.scale]
