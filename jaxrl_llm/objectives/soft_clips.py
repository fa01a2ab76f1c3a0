"""Token losses that keep a gradient on every token, however far its ratio."""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cispo_surrogate(
  logprobs: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  ratio_low: float = 0.0,
  ratio_high: float = 5.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """Clips the importance weight, not the update (CISPO).

    w = sg(clip(exp(log_ratio), ratio_low, ratio_high))
    loss = -w * A * logprobs

  The gradient of a token is -w * A * d logprobs, never 0 by clipping. With
  ratio_low = ratio_high = 1 it is reinforce_surrogate.

  Both caps are ratios, not distances from 1: TRL's epsilon_high of 5.0 is
  ratio_high = 5.0, without a lower cap; verl's, NeMo's and slime's half-widths
  are ratio_low = 1 - clip_low, ratio_high = 1 + clip_high; open-instruct caps
  only above, at 1 + clip_high.

  Args:
    logprobs: of the policy being trained, in nats; 0 on padding.
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    ratio_low: smallest weight; 0 is no cap.
    ratio_high: largest weight; at least 1.

  Returns:
    The loss per token, and 1.0 where the weight was changed, by side:
    {"clip_fraction_low", "clip_fraction_high"}.

  References:
    MiniMax 2025, MiniMax-M1, arXiv:2506.13585; the cap of 5 is that of
    Khatri et al. 2025, ScaleRL, arXiv:2510.13786.
  """
  chex.assert_equal_shape([logprobs, log_ratio, advantages])
  ratio = jnp.exp(log_ratio)
  weight = jax.lax.stop_gradient(jnp.clip(ratio, ratio_low, ratio_high))
  clipped = {
    "clip_fraction_low": (ratio < ratio_low).astype(ratio.dtype),
    "clip_fraction_high": (ratio > ratio_high).astype(ratio.dtype),
  }
  return -weight * jax.lax.stop_gradient(advantages) * logprobs, clipped


def sapo_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  tau_pos: float = 1.0,
  tau_neg: float = 1.05,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """A sigmoid gate in the place of the clip (SAPO).

    tau  = tau_pos if A > 0 else tau_neg
    loss = -(4 / tau) * sigmoid(tau * (r - 1)) * A,  r = exp(log_ratio)

  The gradient is that of -r * A times 4 p (1 - p), p the sigmoid: 1 at r = 1
  for any tau, decaying to both sides. Tends to unclipped_surrogate, but for a
  constant, as tau goes to 0. At r = 1 the value is -2 A / tau.

  Args:
    log_ratio: of tokens, or of sequences, in nats.
    advantages: credit per token; treated as constant.
    tau_pos: steepness where the advantage is positive; positive.
    tau_neg: steepness elsewhere; positive, higher forgets sooner.

  Returns:
    The loss per token, and {"gate"}: the share of -r * A's gradient that is
    left, 4 p (1 - p).

  References:
    Gao et al. 2025, SAPO, arXiv:2511.20347.
  """
  chex.assert_equal_shape([log_ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages)
  tau = jnp.where(advantages > 0, tau_pos, tau_neg).astype(log_ratio.dtype)
  gate = jax.nn.sigmoid(tau * jnp.expm1(log_ratio))
  return -4.0 / tau * gate * advantages, {"gate": 4.0 * gate * (1.0 - gate)}


def vespo_surrogate(
  logprobs: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  k_pos: float = 2.0,
  lambda_pos: float = 3.0,
  k_neg: float = 3.0,
  lambda_neg: float = 2.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """A smooth weight of the whole sequence's ratio (VESPO).

    s = clip(log_ratio, log 1e-8, 20),  W = exp(s)
    phi = W^k * exp(lambda * (1 - W))
    loss = -sg(phi) * A * logprobs

  with (k, lambda) = (k_pos, lambda_pos) where A >= 0, else (k_neg, lambda_neg).
  phi(1) = 1, so on-policy this is reinforce_surrogate; phi is largest at
  W = k / lambda and goes to 0 at both ends.

  Args:
    logprobs: of the policy being trained, in nats; 0 on padding.
    log_ratio: of the whole sequence, the sum over its tokens, in nats; with
      rollout weights, their logarithms added (ratios.sequence_log_weight).
    advantages: credit per token; treated as constant.
    k_pos: power where the advantage is not negative; not negative.
    lambda_pos: decay where the advantage is not negative; positive.
    k_neg: power where the advantage is negative; not negative.
    lambda_neg: decay where the advantage is negative; positive.

  Returns:
    The loss per token, and {"phi"}: the weight.

  References:
    arXiv:2602.10693; bounds of s as in TRL.
  """
  chex.assert_equal_shape([logprobs, log_ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages)
  s = jax.lax.stop_gradient(jnp.clip(log_ratio, math.log(1e-8), 20.0))
  kept = advantages >= 0
  k = jnp.where(kept, k_pos, k_neg).astype(s.dtype)
  decay = jnp.where(kept, lambda_pos, lambda_neg).astype(s.dtype)
  phi = jnp.exp(k * s - decay * jnp.expm1(s))
  return -phi * advantages * logprobs, {"phi": phi}


def check_caps(ratio_low: float, ratio_high: float) -> None:
  """Raises ValueError unless 0 <= ratio_low <= 1 <= ratio_high."""
  if not 0 <= ratio_low <= 1:
    raise ValueError(
      f"ratio_low must be in [0, 1], got {ratio_low}: it is a ratio, the"
      " smallest weight, not a distance from 1."
    )
  if not ratio_high >= 1:
    raise ValueError(
      f"ratio_high must be 1 or more, got {ratio_high}: it is a ratio, the"
      " largest weight, not a distance from 1."
    )


def check_positive(**knobs: float) -> None:
  """Raises ValueError for the first that is not positive and finite."""
  for name, value in knobs.items():
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_not_negative(**knobs: float) -> None:
  """Raises ValueError for the first that is negative or not finite."""
  for name, value in knobs.items():
    if not 0 <= value < float("inf"):
      raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
