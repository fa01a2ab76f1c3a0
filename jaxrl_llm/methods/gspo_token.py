"""GSPO-token: the ratio of whole completions, the gradient of each token.

    s_it = sg(s_i) * exp(logprobs_it - sg(logprobs_it))
    loss = mean_i mean_t [-min(s_it A_it,
                               clip(s_it, 1 - clip_low, 1 + clip_high) A_it)]

with s_i as in GSPO and sg() a constant. Equal to GSPO, value and gradient,
where credit is equal in a row; with credit per token each token is pushed by
its own.

Against GRPO it changes:
  objective  the geometric mean of a completion's ratios in place of each, as a
             value, a far narrower region, no KL

verl's policy loss "gspo" is this form, so is its bound of 10 nats.

Zheng et al. 2025, GSPO, arXiv:2507.18071.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class GspoToken(base.MethodConfig):
  """GSPO-token, as published (verl loss_mode: gspo)."""

  clip_low: float = 3e-4
  """how far the sequence's ratio may fall below 1; (0, 1] (verl
  clip_ratio_low)"""
  clip_high: float = 4e-4
  """how far the sequence's ratio may rise above 1; positive (verl
  clip_ratio_high)"""
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
        ratio=ratios.sequence_token_log_ratio,
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )
