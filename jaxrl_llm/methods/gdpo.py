"""GDPO: several rewards, each standardised in its group before they are added.

    Z_ik = (X_ik - mean_gk) / (std_gk + eps),  S_i = sum_k w_k Z_ik
    A_i  = S_i / (std(S) + eps), over the batch
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]

No reward drowns another by its scale, and combinations with one sum but
different parts are told apart.

Against GRPO it changes:
  advantage  one z-score a reward, added, rescaled over the batch
  objective  no KL by default

X and w are reward_components and reward_weights of the rollout's extras: one
column a verifier of the run, NaN where it does not apply. A rollout without
them has one reward, of weight 1. What a transform adds to rollout.rewards
(an overlong penalty) is not a component and not seen: give it as a reward.
Adding first and standardising then is GRPO itself, whose reward is the sum.

Liu et al. 2026, GDPO, arXiv:2601.05242.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import components, group, token
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gdpo(base.MethodConfig):
  """GDPO, with TRL's constants."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  rescale: Literal["rows", "tokens"] = "rows"
  """the last step: over the rows of the batch (paper, TRL; a group of equal
  rewards keeps 0), or whitened over its tokens (verl)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the stds (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    if self.rescale not in ("rows", "tokens"):
      raise ValueError(f"rescale must be rows or tokens, got {self.rescale!r}.")
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      advantage=self._rows if self.rescale == "rows" else self._tokens,
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )

  def _rows(self, rollout):
    return self._estimate(components.gdpo, rollout)

  def _tokens(self, rollout):
    sums = self._estimate(components.normalized_sum, rollout)
    mask = rollout.mask & (rollout.weights > 0)[:, None]
    spread = jnp.broadcast_to(sums[:, None], mask.shape)
    return token.whiten(spread, mask, ddof=self.ddof)

  def _estimate(self, estimator, rollout):
    parts, factors = components.of_rollout(rollout)
    return estimator(
      parts,
      factors,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=self.ddof,
      eps=self.eps,
    )
