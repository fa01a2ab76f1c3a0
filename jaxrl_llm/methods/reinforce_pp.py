"""REINFORCE++: returns of tokens, whitened over the batch; no critic, no group.

    q_t  = [t is the last token] r_i - beta (logprobs_t - ref_logprobs_t)
    G_t  = q_t + gamma G_{t+1},  or with baseline  G_t = R_i - mean_g
    A_t  = (G_t - mean) / sqrt(var + eps), over all tokens of the batch
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with R_i the sum of q over the completion and M the number of tokens. The
scale comes from the batch, so that no group is blown up by its own std.

Against GRPO it changes:
  advantage  whitened over the tokens of the batch; KL in the reward
  weighting  every token of the batch counts the same
  objective  no KL term

Groups of one are allowed without the baseline: then a prompt where all
completions earn the same still teaches, if others earned something else.

Hu et al. 2025, REINFORCE++, arXiv:2501.03262.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import group, token
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcePp(base.MethodConfig):
  """REINFORCE++ and, with baseline, REINFORCE++-baseline."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.01
  """reward lost per nat of KL to the reference (OpenRLHF kl.init_coef); 0: no
  reference is run"""
  baseline: bool = False
  """subtracts the group's mean reward before whitening; groups of 4 or more
  are advised"""
  gamma: float = 1.0
  """discount a token, [0, 1]; 1 with baseline, whose return has no time"""
  ddof: Literal[0, 1] = 1
  """variance over the tokens less one (1, verl) or the tokens (0, OpenRLHF and
  NeMo RL)"""
  eps: float = 1e-8
  """keeps the division by the variance finite"""
  variance: Literal["add", "at_least"] = "add"
  """var + eps (add, verl) or max(var, eps) (at_least, OpenRLHF and NeMo RL)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    token.check_beta(self.beta)
    token.check_gamma(self.gamma)
    token.check_whitening(ddof=self.ddof, eps=self.eps, variance=self.variance)
    if self.baseline and self.gamma != 1:
      raise ValueError(
        f"gamma must be 1 with baseline, got {self.gamma}: its return is the"
        " same at every token."
      )
    return base.Method(
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
      needs=frozenset({"ref_logprobs"} if self.beta else ()),
      min_group_size=2 if self.baseline else 1,
    )

  def _advantage(self, rollout):
    mask = rollout.mask & (rollout.weights > 0)[:, None]
    returns = self._centred if self.baseline else self._returns
    return token.whiten(
      returns(rollout, mask),
      mask,
      ddof=self.ddof,
      eps=self.eps,
      variance=self.variance,
    )

  def _returns(self, rollout, mask):
    rewards = token.last_token_rewards(rollout.rewards, mask)
    if self.beta:
      rewards = token.kl_penalized(
        rewards,
        rollout.old_logprobs,
        rollout.ref_logprobs,
        mask,
        beta=self.beta,
      )
    return token.discounted_returns(rewards, mask, gamma=self.gamma)

  def _centred(self, rollout, mask):
    rewards = rollout.rewards
    if self.beta:
      rewards = token.kl_penalized_outcome(
        rewards,
        rollout.old_logprobs,
        rollout.ref_logprobs,
        mask,
        beta=self.beta,
      )
    centred = group.group_centred(
      rewards, rollout.weights, group_size=rollout.group_size
    )
    return jnp.broadcast_to(centred[:, None], mask.shape)
