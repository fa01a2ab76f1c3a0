"""Hista: a prefix is worth the mean reward of those that look like it.

    x    the final hidden states, smoothed; a prefix is x up to its node
    V    mean reward of its k nearest prefixes in the group, weighed by
         1 / max(distance, min_d); at the prompt's end the group's mean, at the
         last token the own reward
    A_i  = V_{i+1} - V_i + lam A_{i+1}, for the tokens from node i to the next,
         divided by std_g + eps
    loss = mean_it -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

Nodes are the prompt's end, every min_interval-th position and the last token.

Against GRPO it changes:
  measure    smoothed states, from the forward before the update
  advantage  token by token, from values without a critic
  weighting  every token of the batch counts the same (DAPO)
  objective  the upper clip is wider (DAPO); no KL

At lam = 1 a token's credit is R - V of the node before it; a completion shorter
than min_interval is GRPO's. The states of every mean_window-th position of the
batch are kept until the credit is known: N (S + T) / mean_window D floats.

Our readings: smoothing starts at the first real token, where the official code
goes through left padding too; the last token has its stretch's credit
(credit_last); where candidates are equally far, each has an equal share of the
places left, so that the order of rows does not matter; a value without any
candidate is the group's mean. Kept as it is (debias): the divisor that makes
the first states too long. Kept too, and off by exclude_self: a row's own nodes
are among the neighbours, so that V leans towards the own reward.

Hista, arXiv:2605.29782.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group, state_values
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from pallas_kernels import group_stats

_STATES = "hista_states"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hista(base.MethodConfig):
  """Hista with the numbers of its recipes, on DAPO's loss."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl"""
  alpha: float = 0.7
  """share of the past in the smoothed states, [0, 1) (0.97 in the official
  dataclass)"""
  debias: bool = True
  """divides state k by 1 - alpha^(k + 1), as the official code does"""
  mean_window: int = 5
  """positions between the states that are compared (150 in the dataclass)"""
  min_interval: int = 50
  """positions between nodes"""
  min_d: float = 5.0
  """least distance, in units of the states (3 in the dataclass)"""
  max_k: int = 66
  """neighbours of the first node behind the prompt's end"""
  min_k: int = 6
  """about that of the last but one; linear between them"""
  lam: float = 1.0
  """of the advantage, [0, 1] (official gae_lambda)"""
  exclude_self: bool = False
  """leaves a row's own nodes out of its neighbours (ours)"""
  credit_last: bool = True
  """whether the last token has credit (False: the official code)"""
  scale: Literal["group", "none"] = "group"
  """divides by the std of the group's rewards, or not (official
  scale_rewards)"""
  eps: float = 1e-4
  """added to that std, which is over G - 1, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    self._check()
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      measure=self._measure,
      advantage=self._advantage,
      selection=_without_states,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs | {"old_scores", "token_hidden", "prompt_hidden"},
    )

  def _check(self):
    state_values.check_smoothing(alpha=self.alpha, window=self.mean_window)
    state_values.check_neighbours(
      max_k=self.max_k, min_k=self.min_k, min_d=self.min_d
    )
    state_values.check_nodes(min_interval=self.min_interval, lam=self.lam)
    group.check_std(ddof=1, eps=self.eps)
    if self.scale not in ("group", "none"):
      raise ValueError(f"scale must be group or none, got {self.scale!r}.")

  def _measure(self, scores, rollout):
    states = state_values.smoothed_states(
      scores.prompt_hidden,
      scores.token_hidden,
      rollout.prompt_mask,
      rollout.mask,
      alpha=self.alpha,
      window=self.mean_window,
      debias=self.debias,
    )
    return {_STATES: states}

  def _advantage(self, rollout):
    prompt, own = state_values.lengths(rollout.prompt_mask, rollout.mask)
    nodes = state_values.state_nodes(
      prompt,
      own,
      min_interval=self.min_interval,
      length=rollout.mask.shape[1],
    )
    values = state_values.state_values(
      rollout.extras[_STATES],
      nodes,
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      window=self.mean_window,
      max_k=self.max_k,
      min_k=self.min_k,
      min_d=self.min_d,
      exclude_self=self.exclude_self,
    )
    credit = state_values.segment_advantages(
      values,
      nodes,
      prompt,
      rollout.mask,
      lam=self.lam,
      credit_last=self.credit_last,
    )
    return credit if self.scale == "none" else credit / self._std(rollout)

  def _std(self, rollout):
    """[N, 1]"""
    counted = group.counted_rows(rollout.weights, rollout.rewards)
    table = group_stats.group_moments(
      rollout.rewards, rollout.group_size, mask=counted
    )
    std = group.std(table, ddof=1).repeat(rollout.group_size, axis=0)
    return std + self.eps


def _without_states(rollout, advantages):
  """They are the largest arrays there are, and have done their part."""
  del advantages
  extras = {k: v for k, v in rollout.extras.items() if k != _STATES}
  return rollout.replace(extras=extras)
