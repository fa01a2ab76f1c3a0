"""How far the sampler is from the trainer, in numbers for the log."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.transforms import rollout_correction


def mismatch_metrics(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
) -> dict[str, Float[Array, ""]]:
  """Divergences of sampler and trainer, before anything is done about them.

    d = o - u,  w = exp(d)
    rollout_kl = mean -d            rollout_k3 = mean (w - 1 - d)
    rollout_chi2_token = mean w^2 - 1
    rollout_chi2_seq = mean_i exp(2 sum_t d_it) - 1

  over tokens, the last over rows that have tokens. chi2 is the variance of
  the weights, by which the effective size of the batch shrinks.

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.

  Returns:
    Scalars by these names, all 0 where the two agree.

  References:
    verl, rollout_corr_helper.py, compute_offpolicy_metrics.
  """
  gap = rollout_correction.log_mismatch(old_logprobs, rollout_logprobs, mask)
  token = rollout_correction.log_weights(gap, mask)
  row = rollout_correction.log_weights(gap, mask, level="sequence")
  rows = mask.any(axis=1, keepdims=True)
  return {
    "rollout_kl": -_mean(gap, mask),
    "rollout_k3": _mean(jnp.expm1(token) - token, mask),
    "rollout_chi2_token": _mean(jnp.expm1(2.0 * token), mask),
    "rollout_chi2_seq": _mean(jnp.expm1(2.0 * row), rows),
  }


def weight_metrics(
  weights: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"] | Float[Array, "N 1"],
  mask: Bool[Array, "N T"],
  *,
  low: float = 0.0,
  high: float = 2.0,
  count_empty_rows: bool = False,
) -> dict[str, Float[Array, ""]]:
  """What became of the ratios, and how many completions are left.

    effective share = (mean w)^2 / mean w^2, 1 for equal weights

  Args:
    weights: as applied, before batch normalisation; 0 outside the mask.
    log_ratio: from log_weights; [N, 1] for weights of whole rows.
    mask: true on the policy's own tokens.
    low: bound of the ratio; 0 counts what is below 1 / high, as verl.
    high: bound of the ratio.
    count_empty_rows: whether rows without tokens, of ratio 1, are among the
      rows of raw and fraction (verl: yes).

  Returns:
    Scalars: rollout_is_mean, _std, _min, _max and _ess (a share, in [0, 1])
    over the weights of tokens; rollout_raw_mean, _min and _max of the ratios
    and rollout_fraction_high and _low of them out of bounds, over tokens or
    rows; rollout_is_changed, the share of tokens whose weight is not their
    ratio.

  References:
    verl, rollout_corr_helper.py, compute_is_metrics.
  """
  by_row = log_ratio.shape[1] == 1 and mask.shape[1] > 1
  counted = mask.any(axis=1, keepdims=True) if by_row else mask
  if by_row and count_empty_rows:
    counted = jnp.ones_like(counted)
  raw = jnp.exp(log_ratio)
  mean, square = _mean(weights, mask), _mean(weights**2, mask)
  below = jnp.log(low) if low else -jnp.log(high)
  return {
    "rollout_is_mean": mean,
    "rollout_is_std": jnp.sqrt(_mean((weights - mean) ** 2, mask)),
    "rollout_is_min": _extreme(weights, mask, jnp.min, jnp.inf),
    "rollout_is_max": _extreme(weights, mask, jnp.max, -jnp.inf),
    "rollout_is_ess": mean**2 / jnp.where(square > 0, square, 1.0),
    "rollout_is_changed": _mean(weights != raw, mask),
    "rollout_raw_mean": _mean(raw, counted),
    "rollout_raw_min": _extreme(raw, counted, jnp.min, jnp.inf),
    "rollout_raw_max": _extreme(raw, counted, jnp.max, -jnp.inf),
    "rollout_fraction_high": _mean(log_ratio > jnp.log(high), counted),
    "rollout_fraction_low": _mean(log_ratio < below, counted),
  }


def rejected(
  mask: Bool[Array, "N T"], keep: Bool[Array, "N T"]
) -> dict[str, Float[Array, ""]]:
  """Shares of tokens that are dropped, and of rows that lose any.

  Args:
    mask: true on the policy's own tokens.
    keep: false on dropped ones.

  Returns:
    Scalars rejected_tokens and rejected_rows in [0, 1].
  """
  dropped = mask & ~keep
  return {
    "rejected_tokens": _mean(dropped, mask),
    "rejected_rows": _mean(dropped.any(axis=1), mask.any(axis=1)),
  }


def _mean(values, counted) -> Float[Array, ""]:
  total = jnp.where(counted, values, 0).sum()
  return total / jnp.maximum(counted.sum(), 1)


def _extreme(values, counted, function, neutral) -> Float[Array, ""]:
  found = function(jnp.where(counted, values, neutral))
  return jnp.where(counted.any(), found, 0.0)
