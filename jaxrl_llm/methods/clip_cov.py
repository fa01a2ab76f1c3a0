"""Clip-Cov: a few tokens that would lower the entropy most sit a step out.

    cov  = (A - mean A) (logprobs - mean logprobs), over the batch's tokens
    drop = max(1, fraction M) tokens, at random, of cov_low < cov < cov_high
    loss = sum_it [(1 - drop) -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]
           / M

with A as in GRPO and M the number of tokens. The entropy falls by the
covariance of credit and log-probability, and a few tokens have nearly all of
it.

Against GRPO it changes:
  transform  draws the numbers by which tokens are chosen
  selection  marks the tokens to drop
  weighting  every token of the batch counts the same
  objective  marked tokens have no loss, no KL

Tokens are marked once a rollout, by its old log-probs: at a first update they
are the policy's own. In later updates the paper and verl mark anew, and pass
over tokens that PPO's clip has silenced by then; here these stay marked.

Traps: at least one token is dropped, so in a small batch the share is far above
`fraction`.

Cui et al. 2025, The Entropy Mechanism, arXiv:2505.22617.
"""

import dataclasses
from typing import Literal

from flax import struct
import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import covariance, policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipCov(base.MethodConfig):
  """Clip-Cov, as published."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  fraction: float = 2e-4
  """share of the tokens that is dropped, at least one; (0, 1] (verl
  clip_cov_ratio)"""
  cov_low: float = 1.0
  """tokens of lower covariance are not dropped (verl clip_cov_lb)"""
  cov_high: float = 5.0
  """nor those of higher; above cov_low (verl clip_cov_ub)"""
  seed: int = 0
  """of the choice among candidates"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    covariance.check_fraction(self.fraction)
    if not self.cov_low < self.cov_high:
      raise ValueError(
        f"cov_high must be above cov_low = {self.cov_low}, got"
        f" {self.cov_high}: candidates lie between them."
      )
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      transform=_draw_uniforms(self.seed),
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      selection=self._mark,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(surrogate=self._surrogate),
    )

  def _mark(self, rollout, advantages):
    mask = rollout.mask & (rollout.weights != 0)[:, None]
    drop = covariance.clip_cov_drop(
      rollout.old_logprobs,
      jnp.zeros_like(rollout.old_logprobs),  # before any update
      advantages,
      mask,
      rollout.extras["clip_cov_uniforms"],
      fraction=self.fraction,
      cov_low=self.cov_low,
      cov_high=self.cov_high,
    )
    return rollout.replace(extras=rollout.extras | {"clip_cov_drop": drop})

  def _surrogate(self, tokens):
    loss, metrics = surrogates.clipped_surrogate(
      tokens.log_ratio,
      tokens.advantages,
      clip_low=self.clip_low,
      clip_high=self.clip_high,
    )
    drop = tokens.rollout.extras["clip_cov_drop"]
    metrics |= {"clip_cov_fraction": drop.astype(loss.dtype)}
    return jnp.where(drop, 0.0, loss), metrics


@struct.dataclass
class _DrawState:
  """What the transform remembers."""

  count: jax.Array  # [] int32, rollouts seen


def _draw_uniforms(seed: int) -> types.RolloutTransform:
  """Writes extras["clip_cov_uniforms"] [N, T], others at every rollout."""

  def update(rollout, state):
    key = jax.random.fold_in(jax.random.key(seed), state.count)
    drawn = jax.random.uniform(key, rollout.mask.shape, jnp.float32)
    extras = rollout.extras | {"clip_cov_uniforms": drawn}
    return rollout.replace(extras=extras), _DrawState(count=state.count + 1)

  return types.RolloutTransform(
    init=lambda: _DrawState(count=jnp.zeros((), jnp.int32)), update=update
  )
