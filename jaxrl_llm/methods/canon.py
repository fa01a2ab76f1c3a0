"""CANON: each half of a group is the other's baseline, or its own.

    lower: the floor(G / 2) rows of least entropy (or length); upper: the rest
    x_i  = s r_i - mean of s r over the other half + beta u_i
    y_i  = r_i - mean of r over the own half
    A_i  = mu x_i + (1 - mu) y_i
    l    = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    loss = sum_it [min(l, -dual_clip A) if A < 0 else l] / (N L)

Inter is x, intra is y. Which direction of the metric is better need not be
said: between halves the one that earns more is pushed as a whole, within halves
the better row. mu 1/2 is Dr. GRPO. s is alpha for the lower half of entropies
and for the upper half of lengths, else 1: alpha below 1 favours the other. u is
1 in the upper half and -1 in the lower.

Against GRPO it changes:
  transform  mu as a schedule (off by default)
  advantage  against the mean of a half, not divided by the std
  weighting  every token counts 1 / (N L), L a constant
  objective  clip_high > clip_low, dual clip, no KL

The schedules are the paper's for entropies: accuracy turns from intra to inter
as the batch's mean reward, kept in [0, 1], rises (intra_first) or falls;
cosine restarts. Steps are counted from 0 and saved with the run.

With another alpha or beta equal rewards teach too. A group of one is an upper
half whose means are 0.

CANON: Conditional Advantage Estimation, arXiv:2509.23962.
"""

import dataclasses
import functools
from typing import Literal

from jaxrl_llm.advantages import halves
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.transforms import chain, schedules

# Of the weight of intra, or for inter_first of inter: where a cycle begins and
# where it tends to.
COSINE = {"intra_first": (0.6, 0.0), "inter_first": (1.0, 0.4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canon(base.MethodConfig):
  """CANON-Inter by entropy, as published."""

  metric: Literal["entropy", "length"] = "entropy"
  """what splits a group: mean entropy of a completion's tokens when sampled,
  or their number"""
  mu: float = 1.0
  """share of the comparison between halves: 1 CANON-Inter, 0 CANON-Intra"""
  alpha: float = 1.0
  """factor of one half's rewards between halves, positive; below 1 (0.9)
  favours upper entropies, or short completions"""
  beta: float = 0.0
  """reward given to the upper half and taken from the lower, between halves"""
  schedule: Literal["none", "accuracy", "cosine"] = "none"
  """what mu follows instead: the batch's mean reward, or the step"""
  order: Literal["intra_first", "inter_first"] = "intra_first"
  """where a schedule begins"""
  warmup: int = 30
  """steps before the first cycle of the cosine"""
  total: int = 150
  """steps of the cosine, warmup included"""
  cycles: int = 3
  """how often it restarts in them"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  max_length: int | None = None
  """L, tokens (paper: 8192); None takes the run's completion_length"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    by_entropy = self.metric == "entropy"
    follows = {"accuracy": self._accuracy, "cosine": self._cosine}
    scheduled = self.schedule != "none"
    return base.Method(
      transform=schedules.scheduled("mu", follows[self.schedule])
      if scheduled
      else chain.identity(),
      advantage=self._advantage,
      weighting=functools.partial(
        weighting.fixed_length, length=self.max_length
      ),
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        ),
      ),
      needs=frozenset({"old_scores", "entropy"} if by_entropy else ()),
      min_group_size=1,
    )

  def _check(self):
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    halves.check_conditional(mu=self.mu, alpha=self.alpha, beta=self.beta)
    for name, choices in (
      ("metric", ("entropy", "length")),
      ("schedule", ("none", "accuracy", "cosine")),
      ("order", tuple(COSINE)),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f"{name} must be one of {', '.join(choices)};"
          f" got {getattr(self, name)!r}."
        )
    if self.max_length is not None and self.max_length < 1:
      raise ValueError(
        f"max_length must be at least 1 token, got {self.max_length}."
      )
    if self.warmup < 0 or self.cycles < 1 or self._cycle() < 1:
      raise ValueError(
        "a cosine needs warmup >= 0 and cycles >= 1 of a step or more each"
        f" between warmup and total; got {self.warmup}, {self.cycles} and"
        f" {self.total}."
      )

  def _advantage(self, rollout):
    if self.metric == "entropy":
      metric = halves.mean_over_tokens(
        rollout.extras["old_entropy"], rollout.mask
      )
    else:
      metric = rollout.mask.sum(axis=1).astype(rollout.rewards.dtype)
    return halves.conditional_advantages(
      rollout.rewards,
      metric,
      rollout.weights,
      group_size=rollout.group_size,
      mu=self.mu if self.schedule == "none" else rollout.extras["mu"],
      alpha=self.alpha,
      beta=self.beta,
      scaled="lower" if self.metric == "entropy" else "upper",
    )

  def _accuracy(self, step, rollout):
    del step
    mean = schedules.mean_reward(rollout)
    return mean if self.order == "intra_first" else 1.0 - mean

  def _cosine(self, step, rollout):
    del rollout
    high, low = COSINE[self.order]
    found = schedules.cosine_restart(
      step, high=high, low=low, warmup=self.warmup, cycle=self._cycle()
    )
    return 1.0 - found if self.order == "intra_first" else found

  def _cycle(self) -> int:
    return (self.total - self.warmup) // max(self.cycles, 1)
