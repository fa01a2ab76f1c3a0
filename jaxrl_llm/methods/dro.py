"""DRO: the policy gradient on a spring to the old policy; no ratio, no clip.

    loss = sum_it [-A logprobs + beta / 2 (logprobs - old_logprobs)^2]
           / (number of tokens)

with A as in GRPO. The gradient is that of a least squares fit of
logprobs - old_logprobs to A / beta, the optimum of KL-regularised credit, and
needs no importance weight: rollouts may be as old as they like.

Against GRPO it changes:
  weighting  every token of the batch counts the same
  objective  a quadratic tether in place of ratio and clip, no KL

The paper regresses whole completions against a learnt value; this is its
policy's loss per token, with GRPO's baseline, as in verl (loss_mode dro).

Richemond et al. 2024, DRO, arXiv:2405.19107.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import divergence, policy, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dro(base.MethodConfig):
  """DRO per token, with group-relative credit."""

  beta: float = 1.0
  """strength of the tether, credit per nat; positive. At 1, credit of one std
  is worth a factor e in probability"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    if not 0 < self.beta < float("inf"):
      raise ValueError(
        f"beta must be positive and finite, got {self.beta}: without the"
        " tether nothing holds the policy."
      )
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: divergence.dro_surrogate(
          tokens.logprobs, tokens.log_ratio, tokens.advantages, beta=self.beta
        ),
      ),
    )
