"""VESPO: a smooth weight of the whole completion's ratio, nothing clipped.

    W    = exp(sum_t (logprobs - old_logprobs))
    loss = sum_it [-sg(W^k exp(lambda (1 - W))) A logprobs] / (number of tokens)

with A as in GRPO, sg() a constant and k, lambda by the sign of A. The weight
is 1 on-policy and falls to 0 both for completions that have become unlikely
and for those that have become too likely: old rollouts do little harm.

Against GRPO it changes:
  weighting  every token of the batch counts the same
  objective  a constant weight a completion times the log-prob, no clip, no KL

Weights of a rollout correction multiply W, not the loss.

VESPO, 2026, arXiv:2602.10693.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, ratios, soft_clips, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vespo(base.MethodConfig):
  """VESPO, with TRL's defaults."""

  k_pos: float = 2.0
  """power of W where A >= 0; 0 or more (TRL vespo_k_pos)"""
  lambda_pos: float = 3.0
  """decay in W where A >= 0; positive (TRL vespo_lambda_pos)"""
  k_neg: float = 3.0
  """power of W where A < 0; 0 or more (TRL vespo_k_neg)"""
  lambda_neg: float = 2.0
  """decay in W where A < 0; positive (TRL vespo_lambda_neg)"""
  rollout_level: Literal["token", "sequence"] = "token"
  """whether a rollout correction gave each token a weight of its own, or every
  token that of its sequence"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    soft_clips.check_not_negative(k_pos=self.k_pos, k_neg=self.k_neg)
    soft_clips.check_positive(
      lambda_pos=self.lambda_pos, lambda_neg=self.lambda_neg
    )
    ratios.check_level("rollout_level", self.rollout_level)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        factors=("keep",),  # rollout_is is inside W
        surrogate=self._surrogate,
      ),
    )

  def _surrogate(self, tokens):
    log_ratio = ratios.sequence_sum_log_ratio(
      tokens.logprobs,
      tokens.old_logprobs,
      tokens.mask,
      limit=float("inf"),
      token_limit=20.0,
    )
    if "rollout_is" in tokens.rollout.extras:
      log_ratio += ratios.sequence_log_weight(
        tokens.rollout.extras["rollout_is"],
        tokens.mask,
        level=self.rollout_level,
      )
    return soft_clips.vespo_surrogate(
      tokens.logprobs,
      log_ratio,
      tokens.advantages,
      k_pos=self.k_pos,
      lambda_pos=self.lambda_pos,
      k_neg=self.k_neg,
      lambda_neg=self.lambda_neg,
    )
