"""Numca: the value of the numbers written so far is the baseline.

    V(s)  = mean reward of the prompt's completions that passed through s
    d_k   = V(s_{k+1}) - V(s_k),  d of the last segment = R - V(s_K)
    A_k   = d_k + lam A_{k+1},  A_it = A_k / (std_g(R) + eps), t in segment k
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with s the set of distinct numbers (runs of digits, the last one of a text left
out) and a segment from one set to the next, cut behind the token that begins
the new number. So a step of arithmetic is credited with how it changed the
chance of success; no critic is trained.

Against GRPO it changes:
  plan       cuts completions and keeps V, by prompt, over the whole run; the
             completions of a batch are counted before they are valued
  advantage  of segments, by value differences; no mean is subtracted
  weighting  every token of the batch counts the same
  objective  clip_high > clip_low, no KL

V of the empty set is the mean of all rewards that the prompt has had. With
lam = 1 a token has R - V where its segment begins: completions without a second
number, and groups of one, are compared with the prompt's history alone; std_g
is left out for groups of one. A text without numbers is one segment.

Our reading: a group of equal rewards has no credit. On a prompt with history
the code gives it R - V and divides by eps: min_std = 0 does so too.

Logged: plan/segments a completion, plan/states remembered.

Hista and Numca, arXiv:2605.29782.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.advantages import group, segments
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import number_states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numca(base.MethodConfig):
  """Numca with the loss of DAPO, as its trainer has it."""

  lam: float = 1.0
  """how far credit reaches back over segments; 1: to the reward itself, 0: to
  the next state (gae_lambda)"""
  threshold: int = 50
  """tokens; numbers that begin closer to the next one join it in one segment"""
  max_states: int = 10_000
  """sets of numbers remembered for a prompt, those seen most; the code keeps
  all"""
  scale: Literal["group", "none"] = "group"
  """divides by the std of the group's rewards, or not at all (scale_rewards)"""
  eps: float = 1e-4
  """added to the std, in units of reward"""
  min_std: float = 1e-6
  """groups whose rewards differ less have no credit; 0: theirs is divided by
  eps, as in the code"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""

  def build(self) -> base.Method:
    """Composes the method."""
    segments.check_lam(self.lam)
    group.check_std(ddof=1, eps=self.eps)
    surrogates.check_clip(self.clip_low, self.clip_high)
    self._check()
    return base.Method(
      plan=number_states.plan(
        threshold=self.threshold, max_states=self.max_states
      ),
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
      min_group_size=1,
    )

  def _advantage(self, rollout: types.Rollout):
    counted = (rollout.weights > 0)[:, None]
    advantages = segments.segment_advantages(
      rollout.rewards,
      rollout.extras["segment_ends"],
      rollout.extras["segment_deltas"],
      rollout.mask & counted,
      lam=self.lam,
    )
    if self.scale == "none" or rollout.group_size == 1:
      return advantages
    groups = group.from_group_mean(
      rollout.rewards, rollout.weights, group_size=rollout.group_size
    )
    std = jnp.repeat(group.std(groups, ddof=1), rollout.group_size)[:, None]
    scaled = advantages / (std + self.eps)
    return jnp.where(std < self.min_std, 0.0, scaled)

  def _check(self):
    if self.scale not in ("group", "none"):
      raise ValueError(f"scale must be group or none, got {self.scale!r}.")
    for name, least in (("threshold", 0), ("max_states", 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be {least} or more, got {getattr(self, name)}."
        )
    if not 0 <= self.min_std < float("inf"):
      raise ValueError(
        f"min_std must be 0 or more and finite, got {self.min_std}."
      )
