"""CISPO: the importance weight is clipped, no token loses its gradient.

    w    = sg(clip(r, ratio_low, ratio_high))
    loss = sum_it [-w A logprobs] / (number of tokens)

with A as in GRPO and sg() a constant. PPO's clip silences the rare tokens on
which reasoning turns; here they are pushed with a bounded weight.

Against GRPO it changes:
  weighting  every token of the batch counts the same
  objective  a clipped constant weight times the log-prob, no KL

The caps are ratios. The default has no lower one, as in the paper's runs, TRL
and open-instruct; verl, NeMo and slime cap both sides, at 1 - clip_ratio_low
and 1 + clip_ratio_high.

Traps: ratio_high is a ratio: verl's clip_ratio_high 0.28 is 1.28 here, TRL's
epsilon_high 5 is 5. A cap bounds the push of a token, it does not stop it.

MiniMax 2025, MiniMax-M1, arXiv:2506.13585.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, soft_clips, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cispo(base.MethodConfig):
  """CISPO, with the cap that ScaleRL settled on."""

  ratio_low: float = 0.0
  """smallest weight, a ratio; [0, 1], 0: none (verl: 1 - clip_ratio_low)"""
  ratio_high: float = 5.0
  """largest weight, a ratio; 1 or more (TRL epsilon_high; verl:
  1 + clip_ratio_high)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    soft_clips.check_caps(self.ratio_low, self.ratio_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: soft_clips.cispo_surrogate(
          tokens.logprobs,
          tokens.log_ratio,
          tokens.advantages,
          ratio_low=self.ratio_low,
          ratio_high=self.ratio_high,
        ),
      ),
    )
