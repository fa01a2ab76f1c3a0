"""ReMax: the reward of greedy decoding is the baseline; no critic, no siblings.

    b    = reward of one greedy completion of the same prompt
    q_t  = [t is the last token] r_i - beta (logprobs_t - ref_logprobs_t)
    A_t  = sum_{t' >= t} q_t' - b
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with M the number of tokens. The baseline costs one more completion a prompt,
depends on no sibling and leaves the gradient unbiased; where a completion earns
what greedy decoding does, it teaches nothing.

Against GRPO it changes:
  plan       one greedy completion a prompt, scored, never trained on
  advantage  return to go minus the greedy reward; KL in the reward
  weighting  every token of the batch counts the same
  objective  no KL term

Made for groups of one (group_size 1); larger ones share the baseline. A greedy
completion that is cut off counts with the reward that it gets; if it cannot be
scored, the prompt is left out.

Li et al. 2023, ReMax, arXiv:2310.10505.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import baselines, token
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import plans

_WEIGHTINGS = {
  "token_mean": weighting.token_mean,
  "sequence_sum": weighting.sequence_sum,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remax(base.MethodConfig):
  """ReMax; with one update a rollout its loss is the paper's REINFORCE."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.001
  """reward lost per nat of KL to the reference (verl kl_ctrl.kl_coef); 0: no
  reference is run"""
  weigh: Literal["token_mean", "sequence_sum"] = "token_mean"
  """mean over the tokens of the batch (verl), or the sum over a completion's
  tokens, mean over completions (paper); token_mean by default: the gradient
  then does not grow with the length"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    token.check_beta(self.beta)
    if self.weigh not in _WEIGHTINGS:
      raise ValueError(
        f"weigh must be one of {', '.join(_WEIGHTINGS)}; got {self.weigh!r}."
      )
    return base.Method(
      plan=plans.greedy_baseline(),
      advantage=self._advantage,
      weighting=_WEIGHTINGS[self.weigh],
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
      needs=frozenset({"ref_logprobs"} if self.beta else ()),
      min_group_size=1,
    )

  def _advantage(self, rollout):
    mask = rollout.mask & (rollout.weights > 0)[:, None]
    rewards = token.last_token_rewards(rollout.rewards, mask)
    if self.beta:
      rewards = token.kl_penalized(
        rewards,
        rollout.old_logprobs,
        rollout.ref_logprobs,
        mask,
        beta=self.beta,
      )
    return baselines.greedy_baseline(
      token.discounted_returns(rewards, mask),
      rollout.extras["greedy_rewards"],
      mask,
    )
