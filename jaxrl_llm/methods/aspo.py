"""ASPO: right answers that call code earlier than their siblings get a bonus.

    E_g  = right answers of the group that call code, at token p_i, length L_i
    b_i  = clip(delta (p_i - mean_E p) / mean_E L, -k |A0_i|, k |A0_i|)
    A_i  = A0_i + b_i for i in E_g, else A0_i
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with A0 as in GRPO and M the number of tokens in the groups that are kept. The
bonus bends the credit and not the reward: no advantage changes its sign, and
accuracy stays what is learnt first.

Against GRPO it changes:
  plan       reads from each text where code is first called
  transform  drops groups of equal reward, as DAPO does
  advantage  a bounded bonus for the earlier call
  weighting  every token of the batch counts the same
  objective  clip_high > clip_low, no KL

A call begins where `marker` first matches; a mark that the tokenizer drops from
texts as a special token is not seen. Our readings: |A0| where the paper has
A0, which a baseline can make negative for a right answer; the numbers are those
of the paper's text, since the legends of its figures have 1.5 with 0.7 and 2
with 0.9. Its aggressive setting is delta = -2.5, k = 0.9. Its rejected form, a
bonus in the reward, is a reward function of your own.

Traps: another ASPO (arXiv:2510.06062) samples by importance and is not this.

Lin and Xu 2025, Understanding Tool-Integrated Reasoning, arXiv:2508.19201.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group, reshaping
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import first_match
from jaxrl_llm.transforms import chain, filters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aspo(base.MethodConfig):
  """ASPO around DAPO, with the conservative constants."""

  delta: float = -2.0
  """credit for a call that is one mean length later; negative: earlier is
  better"""
  k: float = 0.7
  """largest share of an advantage that is added or taken; 0: none"""
  marker: str = r"```|<tool_call>|<code>"
  """regular expression: a call of code begins where it first matches"""
  correct: float = 1.0
  """reward from which an answer is right"""
  filter_groups: bool = True
  """gives groups of equal reward weight 0: their tokens leave M"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    reshaping.check_position(delta=self.delta, k=self.k)
    if not abs(self.correct) < float("inf"):
      raise ValueError(f"correct must be finite, got {self.correct}.")
    drop = filters.drop_uniform_groups()
    return base.Method(
      plan=first_match.marked("first_call", self.marker),
      transform=drop if self.filter_groups else chain.identity(),
      advantage=self._credit,
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

  def _credit(self, rollout):
    advantages = group.group_normalized(
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=self.ddof,
      eps=self.eps,
    )
    calls = rollout.extras["first_call"]
    right = (rollout.rewards >= self.correct) & (rollout.weights > 0)
    return reshaping.position_shaped(
      advantages,
      calls.astype(advantages.dtype),
      rollout.mask.sum(axis=1).astype(advantages.dtype),
      right & (calls != first_match.NOWHERE),
      group_size=rollout.group_size,
      delta=self.delta,
      k=self.k,
    )
