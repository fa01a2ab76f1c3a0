"""MaxRL: advantages over the pass rate: the likelihood of a correct answer.

    A_i  = (r_i - mean_g) / mean_g,  0 where mean_g <= 0
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]

The gradient of log p is that of p over p: with 0/1 rewards, whose mean is the
pass rate, the rarer success is on a prompt the harder it is pushed. GRPO
divides by sqrt(p (1 - p)) instead, which also pushes where nearly all is right.

Against GRPO it changes:
  advantage  divided by the mean of the group, not by its std
  objective  no KL by default

Rewards must not be negative for the mean to be a rate.

Tajwar et al. 2026, Maximum Likelihood Reinforcement Learning, arXiv:2602.02710.
"""

import dataclasses

from jaxrl_llm.advantages import baselines
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxRl(base.MethodConfig):
  """MaxRL, with the advantage of prime-rl's max_rl."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      advantage=base.from_rewards(baselines.mean_scaled),
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
