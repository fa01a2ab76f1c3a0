"""GPG: the plain policy gradient, rescaled for groups that teach nothing.

    A_i  = alpha (r_i - mean_g) / F,  alpha = N / M
    loss = sum_it [-A_i logprobs_it] / (number of tokens)

with N the rows and M those in groups whose rewards are not all equal: alpha
makes up for groups whose gradient is 0 but whose tokens are in the mean.

Against GRPO it changes:
  advantage  centred, times alpha, not divided by the std
  weighting  every token of the batch counts the same
  objective  no ratio, no clip, no KL

Without a ratio nothing corrects for old samples: one update a rollout.

Traps: with several updates, or samples of an older policy, nothing corrects for
the policy having moved.

Chu et al. 2025, GPG, arXiv:2504.02546.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import baselines
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpg(base.MethodConfig):
  """GPG, as published."""

  divisor: float = 1.0
  """F, divides advantages; positive (verl f_norm)"""
  count: Literal["mixed_groups", "nonzero_reward"] = "mixed_groups"
  """what M counts: rows in groups of unequal rewards (the paper's reading; a
  reward's zero is a convention), or rows with a reward other than 0 (verl)"""

  def build(self) -> base.Method:
    """Composes the method."""
    baselines.check_rescaling(count=self.count, divisor=self.divisor)
    return base.Method(
      advantage=base.from_rewards(
        baselines.rescaled_centred, count=self.count, divisor=self.divisor
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.reinforce_surrogate(
          tokens.logprobs, tokens.advantages
        ),
      ),
    )
