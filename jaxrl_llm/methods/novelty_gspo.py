"""Novelty bonus: GSPO that rewards unusual correct completions the more.

    x_i  = - mean_t ref_logprobs, log-perplexity under the frozen reference
    b_i  = rank of x_i among the c correct ones of the group, from 0 to 1
    R_i  = r_i + coef b_i for correct ones, r_i for wrong ones
    A_i  = (R_i - mean_g) / (std_g + eps)
    s_i  = exp(mean_t (logprobs - old_logprobs))
    loss = mean_i [-min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)]

RL makes the likely correct answers likelier; the bonus goes to those that the
reference would hardly have found.

Against GRPO it changes:
  transform  the bonus, in groups with two correct completions or more
  advantage  of the reward with its bonus
  objective  GSPO's: the ratio and its clip of whole completions; no KL

Known from an abstract: the bonus, for correct ones alone, by the perplexity
under the reference, with GSPO. Our readings: ranks (or zscore, raw), coef,
and that it takes two correct ones. Below coef 1 every correct completion
outranks every wrong one.

In a group that is solved the bonus is all there is to learn from; see
bonus_on_solved.

When RL Suppresses Its Own Vocabulary, arXiv:2605.29190.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, surrogates, weighting
from jaxrl_llm.transforms import novelty


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoveltyGspo(base.MethodConfig):
  """GSPO with the bonus; its size is ours."""

  coef: float = 0.2
  """lambda, reward of the most unusual correct completion; 0: GSPO"""
  kind: Literal["rank", "zscore", "raw"] = "rank"
  """novelty by rank, by deviations above the mean over 3, or by nats over
  `most`; all in [0, 1]"""
  most: float = 3.0
  """nats a token that count as 1, for raw"""
  bonus_on_solved: bool = True
  """False: none in groups in which all completions are correct"""
  threshold: float = 0.5
  """a completion is correct above this reward"""
  clip_low: float = 3e-4
  """how far the sequence's ratio may fall below 1; (0, 1]"""
  clip_high: float = 4e-4
  """how far the sequence's ratio may rise above 1; positive"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      transform=novelty.novelty_bonus(
        coef=self.coef,
        kind=self.kind,
        most=self.most,
        threshold=self.threshold,
        on_solved=self.bonus_on_solved,
      ),
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        ratio=ratios.sequence_log_ratio,
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
      needs=frozenset({"ref_logprobs"}),
    )
