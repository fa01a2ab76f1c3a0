"""RL2ML: weights of success counts, between expected reward and likelihood.

    K    = successes of the group,  K_-i = those of the siblings of i
    beta = prod_{K <= j < G} (1 + q / j), what one of K successes counts
    A_i  = (r_i - K_-i / (G - 1)) beta(K_-i + 1)             baseline loo
    A_i  = r_i beta(K) - 1                                   baseline score
    loss = mean_i sum_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]

Without clip the gradient is exactly unbiased for J with

    dJ/dp = sum_{k < G} c_k (1 - p)^k,  c_k = c_{k-1} (q + k - 1) / k

p the prompt's rate of success: expected reward for q = 0, log p to order G for
q = 1. A group moves the policy by K beta(K) / G: easy prompts most for q < 1,
rare successes most for q > 1.

Against GRPO it changes:
  transform  q None: chooses q for the batch
  advantage  weights of success counts, never divided by a std
  weighting  the sum over a completion's tokens, mean over completions
  objective  no KL

Our readings, of an abstract: the family in q (derived and enumerated here),
loo as the default baseline, and what q None does: the q whose expected gain in
pass@k, squared, over the second moment of the step is largest. It looks at the
batch it then weighs, so that choice is not unbiased.

score_drop leaves groups without success alone and is biased: it aims at
dJ/dp - (1 - p)^(G-1). A group of one has no siblings: loo is then none.

RL2ML 2026, arXiv:2605.30154.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import success_counts
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.transforms import chain, off_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rl2ml(base.MethodConfig):
  """RL2ML; its paper's values are not known, q and baseline are ours."""

  q: float | None = 1.0
  """order of the family, 0 or more: 0 expected reward, 1 likelihood; None
  chooses it for each batch, from 0 to 3"""
  baseline: Literal["loo", "score", "score_drop", "none"] = "loo"
  """what is subtracted: leave-one-out, the mean score, that where the group
  has a success (biased), nothing"""
  pass_at: int = 1
  """k of the pass@k that q None chooses for; 1: mean accuracy"""
  threshold: float = 0.0
  """a completion succeeds above this reward: outcomes are right or wrong"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    fixed = self.q is not None
    return base.Method(
      transform=chain.identity() if fixed else chain.stateless(self._choose),
      advantage=self._advantage,
      weighting=weighting.sequence_sum,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
      min_group_size=1,
    )

  def _check(self):
    surrogates.check_clip(self.clip_low, self.clip_high)
    success_counts.check_baseline(self.baseline)
    if self.q is not None:
      success_counts.check_q(self.q)
    if self.pass_at < 1:
      raise ValueError(f"pass_at must be at least 1, got {self.pass_at}.")
    if not abs(self.threshold) < float("inf"):
      raise ValueError(f"threshold must be finite, got {self.threshold}.")

  def _advantage(self, rollout):
    return success_counts.success_counted(
      rollout.rewards > self.threshold,
      rollout.weights,
      group_size=rollout.group_size,
      q=rollout.extras["q"] if self.q is None else self.q,
      baseline=self.baseline,
    )

  def _choose(self, rollout):
    """Writes extras["q"], which is a metric too."""
    rates = success_counts.success_rates(
      rollout.rewards > self.threshold,
      rollout.weights,
      group_size=rollout.group_size,
    )
    q = success_counts.choose_q(
      rates,
      group_size=rollout.group_size,
      baseline=self.baseline,
      pass_at=self.pass_at,
    )
    rollout = rollout.replace(extras=rollout.extras | {"q": q})
    return off_policy.noted(rollout, {"q": q})
