"""Token losses with PPO's clip, and without one.

A surrogate says how hard one token is pushed, given its ratio and advantage.
These stop pushing abruptly; those of soft_clips and divergence do not, or look
at something else than the ratio.
"""

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


def dual_clip_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float = 3.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The clipped surrogate, bounded also where it grows without end.

    l = clipped_surrogate
    loss = min(l, -dual_clip * A)  if A < 0,  else l

  A token of negative advantage whose ratio exceeds dual_clip, one that a stale
  policy thought nearly impossible, costs a constant and gives no gradient.
  Tends to clipped_surrogate as dual_clip grows.

  Args:
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    clip_low: how far the ratio may fall below 1; in (0, 1].
    clip_high: how far the ratio may rise above 1; positive.
    dual_clip: c, the ratio beyond which negative advantages are ignored; above
      1 + clip_high, see check_dual_clip (verl clip_ratio_c).

  Returns:
    The loss per token, and 1.0 where the gradient is cut off, by side:
    {"clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"}.

  References:
    Ye et al. 2019, arXiv:1912.09729; the default of verl.
  """
  losses, clipped = clipped_surrogate(
    log_ratio, advantages, clip_low=clip_low, clip_high=clip_high
  )
  advantages = jax.lax.stop_gradient(advantages)
  ceiling = -dual_clip * advantages
  beyond = (advantages < 0) & (losses > ceiling)
  clipped |= {"dual_clip_fraction": beyond.astype(losses.dtype)}
  return jnp.where(beyond, ceiling, losses), clipped


def two_sided_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  delta: float = 4.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The clipped surrogate with the free ratio capped at delta (INTELLECT-2).

    r = exp(log_ratio)
    loss = -min(min(r, delta) * A, clip(r, 1 - clip_low, 1 + clip_high) * A)

  Equals dual_clip_surrogate with dual_clip = delta where delta > 1 + clip_high;
  below that the cap takes the place of the clip for positive advantages, and
  negative ones cost at most 1 + clip_high.

  Args:
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    clip_low: how far the ratio may fall below 1; in (0, 1].
    clip_high: how far the ratio may rise above 1; positive.
    delta: cap of the free ratio (TRL delta).

  Returns:
    The loss per token, and 1.0 where the gradient is cut off, by side:
    {"clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"}.

  References:
    Prime Intellect 2025, INTELLECT-2, arXiv:2505.07291.
  """
  chex.assert_equal_shape([log_ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(log_ratio)
  capped = jnp.minimum(ratio, delta)
  bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  losses = -jnp.minimum(capped * advantages, bounded * advantages)
  cut = {
    "clip_fraction_low": (capped < 1.0 - clip_low) & (advantages < 0),
    "clip_fraction_high": (capped > 1.0 + clip_high) & (advantages > 0),
    "dual_clip_fraction": (ratio > delta) & (advantages < 0),
  }
  return losses, {name: x.astype(losses.dtype) for name, x in cut.items()}


def unclipped_surrogate(
  log_ratio: Float[Array, "N T"], advantages: Float[Array, "N T"]
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """Importance-weighted policy gradient without a trust region.

    loss = -exp(log_ratio) * A

  Args:
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.

  Returns:
    The loss per token, and no metrics.

  References:
    Schulman et al. 2017, arXiv:1707.06347.
  """
  chex.assert_equal_shape([log_ratio, advantages])
  return -jnp.exp(log_ratio) * jax.lax.stop_gradient(advantages), {}


def reinforce_surrogate(
  logprobs: Float[Array, "N T"], advantages: Float[Array, "N T"]
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The plain policy gradient: no ratio, no clip (REINFORCE, GPG).

    loss = -A * logprobs

  Its gradient is that of every surrogate here at ratio 1.

  Args:
    logprobs: of the policy being trained, in nats; 0 on padding.
    advantages: credit per token; treated as constant.

  Returns:
    The loss per token, and no metrics.

  References:
    Williams 1992; Chu et al. 2025, GPG, arXiv:2504.02546.
  """
  chex.assert_equal_shape([logprobs, advantages])
  return -logprobs * jax.lax.stop_gradient(advantages), {}


def blended(
  share: Float[Array, "N 1"],
  one: tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]],
  other: tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]],
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """A mean of two surrogates of the same tokens, and of what they say.

    share * one + (1 - share) * other

  Args:
    share: of the first, in [0, 1], a constant.
    one: what a surrogate returned.
    other: what the same surrogate returned for other advantages.
  """
  share = jax.lax.stop_gradient(share)
  return jax.tree.map(lambda x, y: share * x + (1.0 - share) * y, one, other)


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


def check_dual_clip(dual_clip: float, *, clip_high: float) -> None:
  """Raises ValueError unless dual_clip > 1 + clip_high."""
  if not dual_clip > 1.0 + clip_high:
    raise ValueError(
      f"dual_clip must be above 1 + clip_high = {1.0 + clip_high:g}, got"
      f" {dual_clip}: it bounds ratios that the clip leaves free."
    )
