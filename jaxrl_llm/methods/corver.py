"""CorVer: each sentence has a small reward for what a corpus says of its fact.

    q(c) = absent if c = 0, rare if c < few, 0 if c < many, else common
    ret_it = R_i + q of the sentence that token t is in
    A_it   = (ret_it - mean_g M) / (std_g M + eps),  M_i = mean_t ret_it
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                          + beta * KL_t]

with c how often the words of the sentence's main fact stand together in the
corpus. A sentence without a fact, a pronoun's for instance, has 0.

Against GRPO it changes:
  plan       cuts completions into sentences (inside <think> and <answer>, if
             there are such), finds their facts and counts them
  advantage  of tokens: the outcome and the sentence's reward
  objective  beta is 0.001

R is the run's reward: in the paper a judge's (good 2, partly .5, bad -1) and a
format's (+1 or -1), whose factors are the run's reward_weights (beta_judge is
the judge's). Where less than half of the tokens belong to a sentence, all of
them have R alone.

What needs naming: a corpus, or a function that counts; a run without either
ends before its first step. The corpus is indexed in memory, by words, once; the
paper asks an index of all of Wikipedia. Facts are found by a rule (the first
two names of a sentence), much weaker than the paper's extractor of 0.5B
parameters: give it as `extractor`.

Our reading: completions of equal M are not divided; the code divides by eps
(min_std = 0). The package's text speaks of two tiers (rare = common = 0).

Logged: plan/sentences and plan/facts a completion, plan/unsupported, the share
of facts that are nowhere, plan/unaligned.

CorVer, arXiv:2605.29648.
"""

import dataclasses
from typing import Literal

from jaxrl_llm import types
from jaxrl_llm.advantages import group, token_returns
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import fact_rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corver(base.MethodConfig):
  """CorVer, with a corpus of one's own."""

  corpus: str = ""
  """a text file, or a folder whose *.txt are read; this or `counter`"""
  unit: Literal["paragraph", "document"] = "paragraph"
  """in which words stand together: between blank lines, or in a file"""
  counter: str = ""
  """"file.py:function" that counts instead: (queries) -> one int each; a query
  is a tuple of words"""
  extractor: str = ""
  """"file.py:function" that finds facts: (sentences) -> a list of (head,
  relation, tail) each; empty: names beside a verb, by a rule"""
  absent: float = -0.3
  """reward of a sentence whose fact is nowhere"""
  rare: float = -0.1
  """reward below `few`"""
  common: float = 0.1
  """reward from `many` on"""
  few: int = 5
  """count"""
  many: int = 20
  """count"""
  scale: Literal["group", "none"] = "group"
  """divides by the std of the group, or not at all (scale_rewards)"""
  eps: float = 1e-4
  """added to the std, in units of reward"""
  min_std: float = 1e-6
  """groups that differ less are not divided; 0: they are, by eps"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.001
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=1, eps=self.eps)
    self._check()
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      plan=self._plan(),
      advantage=self._advantage,
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )

  def _plan(self):
    names = (field.name for field in dataclasses.fields(fact_rewards.Tiers))
    return fact_rewards.plan(
      fact_rewards.Tiers(**{name: getattr(self, name) for name in names}),
      corpus=self.corpus,
      unit=self.unit,
      counter=self.counter,
      extractor=self.extractor,
    )

  def _advantage(self, rollout: types.Rollout):
    return token_returns.group_token_returns(
      rollout.rewards,
      rollout.extras["sentence_rewards"],
      rollout.mask,
      rollout.weights,
      group_size=rollout.group_size,
      scale=self.scale == "group",
      eps=self.eps,
      min_std=self.min_std,
    )

  def _check(self):
    legal = {"scale": ("group", "none"), "unit": ("paragraph", "document")}
    for name, values in legal.items():
      if getattr(self, name) not in values:
        raise ValueError(
          f"{name} must be {' or '.join(values)}; got {getattr(self, name)!r}."
        )
    if not 0 <= self.min_std < float("inf"):
      raise ValueError(
        f"min_std must be 0 or more and finite, got {self.min_std}."
      )
