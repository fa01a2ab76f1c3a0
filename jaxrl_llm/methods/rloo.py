"""RLOO: REINFORCE on whole completions, each against the mean of its siblings.

    R_i  = r_i - beta sum_t (logprobs_t - ref_logprobs_t)
    A_i  = R_i - mean of the R of its G - 1 siblings
    rho  = exp(sum_t (logprobs_t - old_logprobs_t))
    loss = mean_i -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

A completion is one action: its ratio is that of its whole text, and the KL to
the reference is part of its reward, not of the loss.

Against GRPO it changes:
  advantage  leave-one-out, not divided by the std; KL in the reward
  objective  ratio of the sequence, the sum over its tokens; no KL term

ratio "token" is verl's RLOO: GRPO's ratio of tokens and a mean over tokens.

Traps: the ratio of a completion multiplies those of its tokens: with several
updates long completions leave the clip's region after a small step.

Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import batch, group, token
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, surrogates, weighting

# Ratio and weighting; a row of equal ratios weighs as one action.
_RATIOS = {
  "sequence": (ratios.sequence_sum_log_ratio, weighting.sequence_mean),
  "token": (ratios.token_log_ratio, weighting.token_mean),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rloo(base.MethodConfig):
  """RLOO, with TRL's defaults."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.05
  """reward lost per nat of KL to the reference (TRL beta); 0: no reference is
  run"""
  ratio: Literal["sequence", "token"] = "sequence"
  """of whole completions (paper, TRL) or of tokens (verl)"""
  normalize: bool = False
  """divides advantages by their std over the batch (TRL
  normalize_advantages)"""
  eps: float = 1e-4
  """added to that std"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    token.check_beta(self.beta)
    group.check_std(ddof=1, eps=self.eps)
    if self.ratio not in _RATIOS:
      raise ValueError(
        f"ratio must be one of {', '.join(_RATIOS)}; got {self.ratio!r}."
      )
    ratio, weigh = _RATIOS[self.ratio]
    return base.Method(
      advantage=self._advantage,
      weighting=weigh,
      objective=policy.policy_objective(
        ratio=ratio,
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
      needs=frozenset({"ref_logprobs"} if self.beta else ()),
    )

  def _advantage(self, rollout):
    rewards = rollout.rewards
    if self.beta:
      rewards = token.kl_penalized_outcome(
        rewards,
        rollout.old_logprobs,
        rollout.ref_logprobs,
        rollout.mask,
        beta=self.beta,
      )
    advantages = group.leave_one_out(
      rewards, rollout.weights, group_size=rollout.group_size
    )
    if self.normalize:
      return batch.batch_scaled(advantages, rollout.weights, eps=self.eps)
    return advantages
