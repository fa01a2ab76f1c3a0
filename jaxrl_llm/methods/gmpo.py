"""GMPO: the geometric mean of a completion's ratios, each clipped by itself.

    q_it = min(d, clip(d, -clip_low, clip_high))  if A_i > 0, else the max
    loss = mean_i [-A_i exp(mean_t q_it)],  d = logprobs - old_logprobs

with A as in GRPO. A geometric mean minds an outlying ratio less than GRPO's
arithmetic one, so the region can be wider: ratios in [e^-0.4, e^0.4].

Against GRPO it changes:
  objective  a geometric mean over tokens, the clip in log space, no KL

Weights of a rollout correction enter as their own geometric mean.

Traps: clip_low and clip_high are nats of the log-ratio, not of the ratio, and
reach exp(0.4) - 1 = 0.49 above it.

Zhao et al. 2025, GMPO, arXiv:2507.20673.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import geometric, policy, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gmpo(base.MethodConfig):
  """GMPO, as published."""

  clip_low: float = 0.4
  """how far the LOG-ratio may fall below 0, in nats; positive (TRL epsilon,
  verl clip_ratio_low)"""
  clip_high: float = 0.4
  """how far the LOG-ratio may rise above 0, in nats; positive (TRL
  epsilon_high, verl clip_ratio_high)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    geometric.check_log_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        factors=("keep",),  # rollout_is is inside the mean
        surrogate=lambda tokens: geometric.geometric_mean_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          tokens.mask,
          tokens.rollout.extras.get("rollout_is"),
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )
