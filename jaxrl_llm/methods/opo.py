"""OPO: the baseline of least variance, the mean reward of the group's tokens.

    A_i  = r_i - sum_j n_j r_j / sum_j n_j
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with n the lengths of the group's completions and M the number of tokens. The
square of a completion's gradient grows with its length: so does its say.

Against GRPO it changes:
  advantage  centred by the length-weighted mean, not divided by the std
  weighting  every token of the batch counts the same
  objective  no KL

The paper trains strictly on-policy: one update a rollout, where the ratio is
1 and the clip does nothing.

Hao et al. 2025, OPO, arXiv:2505.23585.
"""

import dataclasses

from jaxrl_llm.advantages import baselines
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opo(base.MethodConfig):
  """OPO, as published; the clip is for runs with several updates."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    return base.Method(
      advantage=lambda rollout: baselines.length_weighted(
        rollout.rewards,
        rollout.mask.sum(axis=1),
        rollout.weights,
        group_size=rollout.group_size,
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )
