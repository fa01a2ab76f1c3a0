"""Tokens singled out by the covariance of their credit and log-probability.

It is these few tokens that make the entropy of a policy fall (Cui et al.
2025, arXiv:2505.22617): likely ones that are pushed up, unlikely ones that
are pushed down. What singles them out looks at a whole batch and has no
gradient.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.objectives import ranks, surrogates


def token_covariance(
  logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
) -> Float[Array, "N T"]:
  """What each token adds to the covariance over the batch; 0 on padding.

    cov = (A - mean A) * (logprobs - mean logprobs)

  with means over the tokens of the mask.

  Args:
    logprobs: of the policy, in nats.
    advantages: credit per token.
    mask: true on tokens that count.

  Returns:
    Credit times nats.

  References:
    Cui et al. 2025, arXiv:2505.22617.
  """
  chex.assert_equal_shape([logprobs, advantages, mask])
  return _centred(advantages, mask) * _centred(logprobs, mask)


def clip_cov_drop(
  logprobs: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  uniforms: Float[Array, "N T"],
  *,
  fraction: float = 2e-4,
  cov_low: float = 1.0,
  cov_high: float = 5.0,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> Bool[Array, "N T"]:
  """A few tokens of high covariance, at random, to be left out (Clip-Cov).

  Candidates are the tokens with cov_low < cov < cov_high whose gradient PPO's
  clip leaves alone; of these the min(candidates, max(1, floor(fraction * M)))
  with the smallest uniform number are taken, M the tokens of the mask.

  Args:
    logprobs: of the policy, in nats.
    log_ratio: of the policy to the old one, in nats.
    advantages: credit per token.
    mask: true on tokens that count.
    uniforms: independent numbers in [0, 1); all the randomness there is.
    fraction: share of the tokens that may be taken, in (0, 1].
    cov_low: candidates lie above.
    cov_high: candidates lie below.
    clip_low: PPO's, as in clipped_surrogate.
    clip_high: PPO's, as in clipped_surrogate.

  Returns:
    True on the tokens whose loss is to be 0; they stay in the denominator.

  References:
    Cui et al. 2025, arXiv:2505.22617.
  """
  chex.assert_equal_shape([logprobs, log_ratio, advantages, mask, uniforms])
  covariance = token_covariance(logprobs, advantages, mask)
  ratio = jnp.exp(jnp.where(mask, log_ratio, 0.0))
  clipped = (ratio > 1.0 + clip_high) & (advantages > 0)
  clipped |= (ratio < 1.0 - clip_low) & (advantages < 0)
  inside = (covariance > cov_low) & (covariance < cov_high)
  candidates = mask & inside & ~clipped
  return ranks.largest(-uniforms, candidates, _share(fraction, mask))


def kl_cov_select(
  logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  fraction: float = 2e-4,
) -> Bool[Array, "N T"]:
  """The max(1, floor(fraction * M)) tokens of largest covariance (KL-Cov).

  M is the number of tokens of the mask. Of equals the first are taken; where
  all advantages are equal, all are equals.

  Args:
    logprobs: of the policy, in nats.
    advantages: credit per token.
    mask: true on tokens that count.
    fraction: share of the tokens that is taken, in (0, 1].

  Returns:
    True on the tokens that are to be penalised.

  References:
    Cui et al. 2025, arXiv:2505.22617.
  """
  covariance = token_covariance(logprobs, advantages, mask)
  return ranks.largest(covariance, mask, _share(fraction, mask))


def kl_cov_surrogate(
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  selected: Bool[Array, "N T"],
  *,
  coef: float = 1.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The unclipped surrogate; selected tokens are held where they were (KL-Cov).

    loss = -r * A + coef * selected * |log_ratio|,  r = exp(log_ratio)

  Args:
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    selected: from kl_cov_select.
    coef: of the penalty, credit per nat; not negative.

  Returns:
    The loss per token, and {"selected_fraction"}.

  References:
    Cui et al. 2025, arXiv:2505.22617.
  """
  chex.assert_equal_shape([log_ratio, advantages, selected])
  free, _ = surrogates.unclipped_surrogate(log_ratio, advantages)
  # jnp.abs has slope 1 at 0: a token that has not moved would be pushed.
  distance = jnp.sign(log_ratio) * log_ratio
  penalty = jnp.where(selected, distance, 0.0)
  return free + coef * penalty, {
    "selected_fraction": selected.astype(free.dtype)
  }


def check_fraction(fraction: float) -> None:
  """Raises ValueError unless fraction is in (0, 1]."""
  if not 0 < fraction <= 1:
    raise ValueError(
      f"fraction must be in (0, 1], got {fraction}: it is a share of the"
      " batch's tokens."
    )


def _centred(values, mask) -> Float[Array, "N T"]:
  """Minus the mean over the mask, which constants leave exactly 0."""
  values = jax.lax.stop_gradient(jnp.where(mask, values, 0.0))
  # From the lowest of them, so that equal values differ by no rounding.
  low = jnp.where(mask, values, jnp.inf).min()
  above = jnp.where(mask, values - low, 0.0)
  mean = above.sum() / jnp.maximum(mask.sum(), 1)
  return jnp.where(mask, above - mean, 0.0)


def _share(fraction, mask) -> Int[Array, ""]:
  """How many of the mask's tokens that is, at least 1."""
  return jnp.maximum(ranks.share(fraction, mask), 1)
