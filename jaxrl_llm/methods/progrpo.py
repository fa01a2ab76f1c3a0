"""ProGRPO: more credit for answers that the policy was less sure of.

    c(o) = exp(mean of the fraction * n smallest of its n old_logprobs)
    c(q) = the same of the prompt's own tokens
    A_i  = (r_i - mean_g) / (std_g + eps)
           + alpha (c(q) - c(o_i)), in groups with a correct completion
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with M the number of tokens. Of two correct answers the rarer gets more; on a
prompt that the policy hardly knows (small c(q)) all of them get less.

Against GRPO it changes:
  advantage  plus a difference of confidences, so no longer zero in sum
  weighting  every token of the batch counts the same
  objective  clip_high > clip_low, no KL

The paper was read at second hand. Our readings: c(q) (normalised as c(o) is)
and alpha. The printed rule moves every completion of a group with a correct
one, wrong ones and all-correct groups too; a note and the abstract say
otherwise, see skip_all_correct and correct_only. A prompt's first token has no
log-probability and is left out; those of a chat template are in.

ProGRPO: Back to Basics, arXiv:2602.05281.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import confidence, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progrpo(base.MethodConfig):
  """ProGRPO, by the printed rule; its alpha is ours."""

  alpha: float = 0.3
  """credit for a confidence of 1, more than is ever added; 0: GRPO"""
  fraction: float = 0.2
  """share of the tokens, the least likely, that confidence is made of"""
  skip_all_correct: bool = False
  """leaves groups alone in which all are correct"""
  correct_only: bool = False
  """leaves wrong completions alone"""
  threshold: float = 0.0
  """a completion is correct above this reward"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  ddof: Literal[0, 1] = 0
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    confidence.check_fraction(self.fraction)
    if not 0 <= self.alpha < float("inf"):
      raise ValueError(f"alpha must be 0 or more and finite, got {self.alpha}.")
    if not abs(self.threshold) < float("inf"):
      raise ValueError(f"threshold must be finite, got {self.threshold}.")
    return base.Method(
      advantage=self._advantage,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
      needs=frozenset({"old_scores", "prompt_logprobs"}),
    )

  def _advantage(self, rollout):
    sure = [
      confidence.low_probability_confidence(
        logprobs, mask, fraction=self.fraction
      )
      for logprobs, mask in (
        (
          rollout.extras["prompt_logprobs"],
          confidence.own_prompt_tokens(rollout.prompt_mask),
        ),
        (rollout.extras["trainer_logprobs"], rollout.mask),
      )
    ]
    advantages = group.group_normalized(
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=self.ddof,
      eps=self.eps,
    )
    return confidence.confidence_shifted(
      advantages,
      rollout.rewards > self.threshold,
      *sure,
      rollout.weights,
      group_size=rollout.group_size,
      alpha=self.alpha,
      skip_all_correct=self.skip_all_correct,
      correct_only=self.correct_only,
    )
