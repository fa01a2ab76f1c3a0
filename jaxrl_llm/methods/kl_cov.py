"""KL-Cov: the tokens that would lower the entropy most are held in place.

    cov  = (A - mean A) (logprobs - mean logprobs), over the batch's tokens
    held = the max(1, fraction M) tokens of largest cov
    loss = sum_it [-r A + held coef |logprobs - old_logprobs|] / M

with A as in GRPO and M the number of tokens. The entropy falls by the
covariance of credit and log-probability, and a few tokens have nearly all of
it.

Against GRPO it changes:
  selection  marks the tokens to hold
  weighting  every token of the batch counts the same
  objective  no clip; marked tokens pay for leaving the old policy; no KL

Tokens are marked once a rollout, by its old log-probs: at a first update they
are the policy's own. In later updates the paper and verl mark anew. The
penalty has no gradient at the first update, where nothing has moved: it needs
several updates a rollout.

Cui et al. 2025, The Entropy Mechanism, arXiv:2505.22617.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import covariance, policy, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlCov(base.MethodConfig):
  """KL-Cov, as published."""

  fraction: float = 2e-4
  """share of the tokens that is held, at least one; (0, 1] (verl
  kl_cov_ratio)"""
  coef: float = 1.0
  """of the penalty, credit per nat; 0 or more (verl ppo_kl_coef, whose shipped
  config has 0.1)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    covariance.check_fraction(self.fraction)
    if not 0 <= self.coef < float("inf"):
      raise ValueError(f"coef must be 0 or more and finite, got {self.coef}.")
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      selection=self._mark,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: covariance.kl_cov_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          tokens.rollout.extras["kl_cov_selected"],
          coef=self.coef,
        ),
      ),
    )

  def _mark(self, rollout, advantages):
    selected = covariance.kl_cov_select(
      rollout.old_logprobs,
      advantages,
      rollout.mask & (rollout.weights != 0)[:, None],
      fraction=self.fraction,
    )
    return rollout.replace(
      extras=rollout.extras | {"kl_cov_selected": selected}
    )
