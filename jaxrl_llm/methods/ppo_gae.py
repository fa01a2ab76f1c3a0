"""PPO: a critic, learnt beside the policy, says what each token was worth.

    q_t  = [t is the last token] r_i - beta (logprobs_t - ref_logprobs_t)
    A_t  = delta_t + gamma lam A_{t+1},  delta_t = q_t + gamma v_{t+1} - v_t
    R_t  = A_t + v_t,  then A whitened over all tokens of the batch
    near = clip(v, v_old - value_clip, v_old + value_clip)
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                   + value_coef * max((v - R)^2, (near - R)^2) / 2
                   - entropy_coef * H_t] / M

with M the number of tokens and v_old, A and R of the critic before the step.

Against GRPO it changes:
  advantage  generalised advantage estimation; KL in the reward
  selection  the critic's targets, and how much of them it foresaw
  weighting  every token of the batch counts the same
  objective  the critic's loss, no KL term

The critic is one linear map of the policy's final hidden states, with its own
optimizer; by default its loss does not reach the policy's parameters. It costs
one more forward a step, for the values before it. No siblings are compared, so
groups of one are allowed.

Papers: generalised advantages, Schulman et al. 2015, arXiv:1506.02438. The
clipped surrogate, Schulman et al. 2017, PPO, arXiv:1707.06347.
"""

import dataclasses

from jaxrl_llm import types
from jaxrl_llm.advantages import gae, token
from jaxrl_llm.methods import base
from jaxrl_llm.models import value_head
from jaxrl_llm.objectives import policy, surrogates, values, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo(base.MethodConfig):
  """PPO with GAE as LLM trainers run it: outcome reward, gamma = lam = 1."""

  gamma: float = 1.0
  """discount a token, [0, 1]"""
  lam: float = 1.0
  """1 trusts rewards alone, below it the critic too, [0, 1]; classic PPO has
  0.95, LLM trainers 1: one reward at the end would fade to lam^T (verl
  algorithm.lam)"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  value_clip: float = 0.5
  """how far a value may move in a step, in units of reward; inf: not clipped
  (verl cliprange_value)"""
  value_coef: float = 1.0
  """multiplies the critic's loss; matters only beside a trunk_gradient, the
  critic's own AdamW being blind to scale (TRL vf_coef)"""
  beta: float = 0.0
  """reward lost per nat of KL to the reference, k1 (verl kl_ctrl.kl_coef, used
  there only if use_kl_in_reward); 0: no reference is run"""
  entropy_coef: float = 0.0
  """coefficient of an entropy bonus (the paper's c2); 0: none"""
  whiten: bool = True
  """gives the advantages mean 0 and variance 1 over the tokens of the batch,
  as verl, TRL and OpenRLHF do; False leaves them in units of reward"""
  trunk_gradient: float = 0.0
  """share of the critic's gradient that enters the policy's trunk, [0, 1]; 1 is
  the shared network of the paper. 0 by default: a critic that starts from
  nothing would pull on features that already speak"""
  critic_rate: float = 10.0
  """learning rate of the critic over the policy's (verl: 1e-5 over 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    gae.check_discounts(self.gamma, self.lam)
    token.check_beta(self.beta)
    bonus, needs = base.regularizers(entropy_coef=self.entropy_coef)
    critic = values.value_penalties(coef=self.value_coef, clip=self.value_clip)
    return base.Method(
      advantage=self._advantage,
      selection=self._with_returns,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=(*critic, *bonus),
      ),
      needs=needs
      | {"values", "old_scores"}
      | ({"ref_logprobs"} if self.beta else set()),
      min_group_size=1,
      head=value_head.ValueHead(
        trunk_gradient=self.trunk_gradient, rate=self.critic_rate
      ),
    )

  def _advantage(self, rollout):
    estimate, mask = self._estimate(rollout)
    if not self.whiten:
      return estimate.advantages
    return token.whiten(estimate.advantages, mask)

  def _with_returns(self, rollout, advantages):
    del advantages  # whitened; the critic learns what it is before that
    (_, returns), mask = self._estimate(rollout)
    old = rollout.extras["old_values"]
    found = {
      "returns": returns,
      "metric/explained_variance": gae.explained_variance(old, returns, mask),
      "metric/value_mean": token.moments(old, mask, ddof=0)[0],
      "metric/return_mean": token.moments(returns, mask, ddof=0)[0],
    }
    return rollout.replace(extras=rollout.extras | found)

  def _estimate(self, rollout: types.Rollout):
    """Advantages and returns as they are, and the tokens that count."""
    mask = rollout.mask & (rollout.weights > 0)[:, None]
    rewards = token.last_token_rewards(rollout.rewards, mask)
    if self.beta:
      rewards = token.kl_penalized(
        rewards,
        rollout.old_logprobs,
        rollout.ref_logprobs,
        mask,
        beta=self.beta,
      )
    estimate = gae.generalized_advantages(
      rewards,
      rollout.extras["old_values"],
      mask,
      gamma=self.gamma,
      lam=self.lam,
    )
    return estimate, mask
