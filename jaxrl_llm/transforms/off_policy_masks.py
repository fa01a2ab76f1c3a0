"""Masks that look at more than one token's or one row's mismatch.

Like the rules of transforms.rejection they keep everything where the two
policies agree. d = o - u as in transforms.rollout_correction.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.transforms import rollout_correction


def second_moment_mask(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  threshold: float = 0.04,
) -> Bool[Array, "N T"]:
  """Drops the fewest tokens that bring the second moment down (M2PO).

    keep the k smallest d^2, k the largest with mean of them < threshold

  over all tokens of the batch; at least one is kept. E[d^2] bounds the chi^2
  divergence of the two policies, which is the variance of the weights.

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    threshold: tau_M2, nats^2; positive.

  Returns:
    A mask within `mask`.

  Raises:
    ValueError: if threshold is not positive.

  References:
    Zheng et al. 2025, arXiv:2510.01161; AReaL, _apply_m2po_masking.
  """
  if not threshold > 0:
    raise ValueError(f"threshold must be positive, got {threshold}.")
  mismatch = rollout_correction.log_mismatch(
    old_logprobs, rollout_logprobs, mask
  )
  moment = jnp.where(mask, mismatch**2, jnp.inf).reshape(-1)
  order = jnp.argsort(moment)
  ascending = moment[order]
  rank = jnp.arange(moment.size)
  mean = jnp.cumsum(ascending) / (rank + 1)  # inf from the padding on
  kept = jnp.maximum((mean < threshold).sum(), 1)
  keep = jnp.zeros(moment.shape, bool).at[order].set(rank < kept)
  return mask & keep.reshape(mask.shape)


def off_policy_sequence_mask(
  logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  delta: float,
) -> Bool[Array, "N T"]:
  """Drops what a row did wrong once the policy has left it (OPSM).

    drop iff A < 0 and mean_t (rollout_logprobs - logprobs) > delta

  the mean, over the row's tokens, being k1 of KL(sampler || policy). A policy
  that moved towards the row, or a row with a good outcome, is kept.

  Args:
    logprobs: the CURRENT policy's, in nats; no gradient.
    rollout_logprobs: the sampler's, in nats.
    advantages: credit per token.
    mask: true on the policy's own tokens; the rest may hold anything.
    delta: nats a token; 0 or more (TRL off_policy_mask_threshold, for which
      it gives 0.5 as an example; slime 1e-4).

  Returns:
    True to keep, outside the mask too.

  References:
    DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556, section 3.1.
  """
  check_delta(delta)
  chex.assert_equal_shape([logprobs, advantages])
  mismatch = rollout_correction.log_mismatch(logprobs, rollout_logprobs, mask)
  divergence = -_row_mean(mismatch, mask)
  return ~((jnp.where(mask, advantages, 0.0) < 0) & (divergence > delta))


def total_variation_mask(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  low: float = 0.0,
  high: float = 0.1,
  limit: float = 20.0,
) -> Bool[Array, "N T"]:
  """Drops tokens that would widen a gap that is out of bounds already.

    v_i = mean_t |exp(d_it) - 1|
    drop iff v_i is not in [low, high] and sign(d) A > 0

  v_i / 2 estimates the total variation of trainer and sampler on the row.

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats.
    advantages: credit per token.
    mask: true on the policy's own tokens; the rest may hold anything.
    low: 0 is no bound.
    high: 0 is no bound.
    limit: bound of d in nats; open-instruct has 10.

  Returns:
    A mask within `mask`.

  References:
    open-instruct, grpo_utils.py, rho_mask_tv_divergence.
  """
  mismatch = rollout_correction.log_mismatch(
    old_logprobs, rollout_logprobs, mask
  )
  ratio = jnp.exp(jnp.clip(mismatch, -limit, limit))
  variation = _row_mean(jnp.abs(ratio - 1.0), mask)
  outside = (variation < low) | (variation > (high or jnp.inf))
  advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
  return mask & ~(outside & (jnp.sign(mismatch) * advantages > 0))


def check_delta(delta: float) -> None:
  """Raises ValueError unless delta is 0 or more."""
  if not delta >= 0:
    raise ValueError(f"delta must be 0 or more nats a token, got {delta}.")


def _row_mean(values, mask) -> Float[Array, "N 1"]:
  """Over the tokens of a row; 0 for a row without any."""
  total = jnp.where(mask, values, 0.0).sum(axis=1, keepdims=True)
  return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
