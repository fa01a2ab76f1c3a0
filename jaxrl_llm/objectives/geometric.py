"""The token loss that is one number a completion: a geometric mean."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def geometric_mean_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  rollout_is: Float[Array, "N T"] | None = None,
  *,
  clip_low: float = 0.4,
  clip_high: float = 0.4,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """Clips token ratios one by one, then takes their geometric mean (GMPO).

    c = clip(log_ratio, -clip_low, clip_high)
    q = min(log_ratio, c)  if A > 0,  else max(log_ratio, c)
    loss_it = -A_i * exp(sum_t m q / n_i) * g_i

  the same at every token of a row, A_i the mean of its advantages. g_i is 1,
  or exp(sum_t m log(rollout_is + 1e-10) / n_i), the geometric mean of the
  rollout's weights. Without a clip it is the unclipped GSPO; with T = 1 it is
  clipped_surrogate in the region (exp(-clip_low), exp(clip_high)). Meant for
  weighting.sequence_mean: the loss is then the mean over rows.

  Args:
    log_ratio: of the tokens, in nats; 0 on padding.
    advantages: credit; treated as constant.
    mask: true on tokens that count.
    rollout_is: weights of the rollout, in [0, inf), or None; constants. A
      caller that passes them must not multiply by them again.
    clip_low: how far the LOG-ratio may fall below 0, in nats; positive.
    clip_high: how far the LOG-ratio may rise above 0, in nats; positive.

  Returns:
    The loss per token, and 1.0 where a token's gradient is cut off, by side:
    {"clip_fraction_low", "clip_fraction_high"}.

  References:
    Zhao et al. 2025, GMPO, arXiv:2507.20673; g_i is verl's.
  """
  chex.assert_equal_shape([log_ratio, advantages, mask])
  advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
  bound = jnp.clip(log_ratio, -clip_low, clip_high)
  one_sided = jnp.where(
    advantages > 0, jnp.minimum(log_ratio, bound), jnp.maximum(log_ratio, bound)
  )
  exponent = _row_mean(one_sided, mask)
  if rollout_is is not None:
    weights = jnp.where(mask, jax.lax.stop_gradient(rollout_is), 1.0)
    exponent += _row_mean(jnp.log(weights + 1e-10), mask)
  loss = -_row_mean(advantages, mask) * jnp.exp(exponent)
  clipped = {
    "clip_fraction_low": (log_ratio < -clip_low) & (advantages < 0),
    "clip_fraction_high": (log_ratio > clip_high) & (advantages > 0),
  }
  return jnp.where(mask, loss, 0.0), {
    name: x.astype(loss.dtype) for name, x in clipped.items()
  }


def check_log_clip(clip_low: float, clip_high: float) -> None:
  """Raises ValueError unless both are positive."""
  for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
    if not value > 0:
      raise ValueError(
        f"{name} must be positive, got {value}: it bounds the log-ratio, in"
        " nats."
      )


def _row_mean(values, mask) -> Float[Array, "N 1"]:
  """Over the tokens of a row; 0 for a row without any."""
  total = jnp.where(mask, values, 0.0).sum(axis=1, keepdims=True)
  return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
