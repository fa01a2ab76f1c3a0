"""Token losses: how hard to push one token, given its ratio and advantage."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """Pessimistic policy-gradient loss with a trust region (PPO).

    r = exp(log_ratio)
    loss = -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)

  A token gives no gradient once its ratio has left the region in the
  direction that its advantage pushes. DAPO sets clip_high > clip_low. At
  r = 1 the value is -A and the gradient -A * d logprob.

  Args:
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    clip_low: how far the ratio may fall below 1 when the advantage is
      negative; in (0, 1].
    clip_high: how far it may rise above 1 when the advantage is positive.

  Returns:
    The loss per token, and 1.0 where the gradient is cut off, by side:
    {"clip_fraction_low", "clip_fraction_high"}.

  References:
    Schulman et al. 2017, arXiv:1707.06347; Yu et al. 2025, arXiv:2503.14476.
  """
  chex.assert_equal_shape([log_ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(log_ratio)
  free = ratio * advantages
  bound = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
  low = (ratio < 1.0 - clip_low) & (advantages < 0)
  high = (ratio > 1.0 + clip_high) & (advantages > 0)
  clipped = {
    "clip_fraction_low": low.astype(free.dtype),
    "clip_fraction_high": high.astype(free.dtype),
  }
  return -jnp.minimum(free, bound), clipped


def check_clip(clip_low: float, clip_high: float) -> None:
  """Raises ValueError unless 0 < clip_low <= 1 and clip_high > 0."""
  if not 0 < clip_low <= 1:
    raise ValueError(
      f"clip_low must be in (0, 1], got {clip_low}: the ratio is kept above"
      " 1 - clip_low."
    )
  if not clip_high > 0:
    raise ValueError(
      f"clip_high must be positive, got {clip_high}: the ratio is kept below"
      " 1 + clip_high."
    )
