"""Token losses held near the old policy by a divergence, not by the ratio."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_jvp
def jensen_shannon_terms(
  p: Float[Array, "... V"], q: Float[Array, "... V"]
) -> Float[Array, "... V"]:
  """Of each outcome its part in the Jensen-Shannon divergence.

    (p log(p / m) + q log(q / m)) / 2,  m = (p + q) / 2

  with 0 log 0 = 0; exactly 0, and without gradient, where p = q. The gradient
  of p is log(p / m) / 2, taken as 0 at p = 0, where a softmax has none.

  Args:
    p: probabilities.
    q: the same.
  """
  log_p, log_q = _log_ratios_to_middle(p, q)
  return 0.5 * (p * log_p + q * log_q)


@jensen_shannon_terms.defjvp
def _jensen_shannon_jvp(primals, tangents):
  log_p, log_q = _log_ratios_to_middle(*primals)
  change = 0.5 * (log_p * tangents[0] + log_q * tangents[1])
  return jensen_shannon_terms(*primals), change


def jensen_shannon(
  p: Float[Array, "... V"], q: Float[Array, "... V"]
) -> Float[Array, "..."]:
  """The Jensen-Shannon divergence of distributions along the last axis.

    KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

  Args:
    p: probabilities; outcomes that cannot be have 0 in both.
    q: the same.

  Returns:
    Nats in [0, log 2] but for rounding, symmetric, exactly 0 for p = q.

  References:
    Lin 1991, Divergence measures based on the Shannon entropy.
  """
  chex.assert_equal_shape([p, q])
  return jensen_shannon_terms(p, q).sum(axis=-1)


def dppo_surrogate(
  logprobs: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  keep: Bool[Array, "N T"],
  *,
  truncation: float = 20.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The policy gradient of the tokens that a divergence has not masked (DPPO).

    loss = -keep * sg(min(exp(log_ratio), truncation)) * A * logprobs

  Args:
    logprobs: of the policy being trained, in nats; 0 on padding.
    log_ratio: log pi(token) - log pi_old(token), in nats.
    advantages: credit per token; treated as constant.
    keep: from binary_tv_keep or binary_kl_keep.
    truncation: largest importance weight (verl clip_ratio_c).

  Returns:
    The loss per token, and 1.0 where a token is masked or its weight is cut:
    {"mask_fraction", "truncated_fraction"}.

  References:
    Qi et al. 2026, arXiv:2602.04879; the truncation, section 5.4.
  """
  chex.assert_equal_shape([logprobs, log_ratio, advantages, keep])
  ratio = jnp.exp(log_ratio)
  weight = jax.lax.stop_gradient(jnp.minimum(ratio, truncation))
  push = weight * jax.lax.stop_gradient(advantages)
  cut = {
    "mask_fraction": ~keep,
    "truncated_fraction": keep & (ratio > truncation),
  }
  return jnp.where(keep, -push * logprobs, 0.0), {
    name: x.astype(ratio.dtype) for name, x in cut.items()
  }


def binary_tv_keep(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  bound_low: float = 0.15,
  bound_high: float = 0.15,
) -> Bool[Array, "N T"]:
  """Tokens whose probability has not yet moved too far where it is pushed.

    keep = p - q <= bound_high  if A > 0,  else  p - q >= -bound_low

  with p = exp(logprobs), q = exp(old_logprobs): |p - q| is the total variation
  between the policies once all other tokens are taken as one.

  Args:
    logprobs: of the policy being trained, in nats.
    old_logprobs: of the policy that sampled, in nats.
    advantages: credit per token; only its sign is used.
    bound_low: how far the probability may fall, in (0, 1].
    bound_high: how far the probability may rise, in (0, 1].

  Returns:
    True where the token is trained; it has no gradient.

  References:
    Qi et al. 2026, arXiv:2602.04879.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, advantages])
  moved = jnp.exp(logprobs) - jnp.exp(old_logprobs)
  return jnp.where(advantages > 0, moved <= bound_high, moved >= -bound_low)


def binary_kl_keep(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  bound_low: float = 0.05,
  bound_high: float = 0.05,
) -> Bool[Array, "N T"]:
  """The same by the KL of the two-outcome distributions (token, all others).

    D = q (log q - log p) + (1 - q) log((1 - q + 1e-8) / (1 - p + 1e-8))
    keep = D <= bound_high or p <= q  if A > 0
    keep = D <= bound_low  or p >= q  otherwise

  so a token that moves back is always trained.

  Args:
    logprobs: of the policy being trained, log p, in nats.
    old_logprobs: of the policy that sampled, log q, in nats.
    advantages: credit per token; only its sign is used.
    bound_low: largest D where the advantage is not positive, in nats.
    bound_high: largest D where the advantage is positive, in nats.

  Returns:
    True where the token is trained; it has no gradient.

  References:
    Qi et al. 2026, arXiv:2602.04879.
  """
  chex.assert_equal_shape([logprobs, old_logprobs, advantages])
  q, rest = jnp.exp(old_logprobs), -jnp.expm1(old_logprobs)
  others = jnp.log((rest + 1e-8) / (1e-8 - jnp.expm1(logprobs)))
  divergence = q * (old_logprobs - logprobs) + rest * others
  return jnp.where(
    advantages > 0,
    (divergence <= bound_high) | (logprobs <= old_logprobs),
    (divergence <= bound_low) | (logprobs >= old_logprobs),
  )


def dro_surrogate(
  logprobs: Float[Array, "N T"],
  log_ratio: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  *,
  beta: float = 1.0,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """The policy gradient with a quadratic tether to the old policy (DRO).

    loss = -A * logprobs + (beta / 2) * log_ratio^2
    d loss / d logprobs = -(A - beta * log_ratio)

  which is the gradient of (A - beta * log_ratio)^2 / (2 beta): the least
  squares fit of the optimum log_ratio = A / beta of KL-regularised credit.
  No importance weight: sound on samples of any policy.

  Args:
    logprobs: of the policy being trained, in nats; 0 on padding.
    log_ratio: log pi(token) - log pi_old(token), in nats; gradients flow.
    advantages: credit per token; treated as constant.
    beta: strength of the tether, credit per nat; positive.

  Returns:
    The loss per token, and {"squared_log_ratio"}, in nats squared.

  References:
    Richemond et al. 2024, DRO, arXiv:2405.19107 (per token as in verl).
  """
  chex.assert_equal_shape([logprobs, log_ratio, advantages])
  gain = jax.lax.stop_gradient(advantages) * logprobs
  squared = log_ratio**2
  return -gain + 0.5 * beta * squared, {"squared_log_ratio": squared}


def check_bounds(
  bound_low: float, bound_high: float, truncation: float
) -> None:
  """Raises ValueError unless bounds are positive and truncation at least 1."""
  for name, value in (("bound_low", bound_low), ("bound_high", bound_high)):
    if not value > 0:
      raise ValueError(
        f"{name} must be positive, got {value}: within it a token is trained."
      )
  if not truncation >= 1:
    raise ValueError(
      f"truncation must be 1 or more, got {truncation}: it is the largest"
      " importance weight."
    )


def _log_ratios_to_middle(p, q):
  """log(p / m) and log(q / m), 0 where p or q is."""
  # The half of a smallest number is 0: those count as 0 themselves.
  least = 4 * jnp.finfo(jnp.result_type(p, q)).tiny
  log_m = jnp.log(jnp.where(p + q > least, 0.5 * (p + q), 1.0))
  return tuple(
    jnp.where(x > least, jnp.log(jnp.where(x > least, x, 1.0)) - log_m, 0.0)
    for x in (p, q)
  )
