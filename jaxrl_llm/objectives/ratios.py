"""Log importance ratios between the current and the sampling policy."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def token_log_ratio(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  limit: float = 20.0,
) -> Float[Array, "N T"]:
  """Each token against itself; 0 on padding.

    log_ratio = clip(logprobs - old_logprobs, -limit, limit)

  Args:
    logprobs: of the policy being trained, in nats.
    old_logprobs: of the policy that sampled, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    limit: bound in nats that keeps exp finite in float32; no gradient beyond.

  Returns:
    Log-ratios in nats.

  References:
    Schulman et al. 2017, arXiv:1707.06347; the limit of 20 is verl's.
  """
  return jnp.clip(_difference(logprobs, old_logprobs, mask), -limit, limit)


def sequence_log_ratio(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  limit: float = 20.0,
) -> Float[Array, "N T"]:
  """The mean over a completion's tokens, the same at each of them (GSPO).

    z_i = sum_t m_it (logprobs - old_logprobs)_it / max(n_i, 1)
    log_ratio_it = clip(z_i, -limit, limit)

  exp(z_i) is the geometric mean of the token ratios. A gradient at one token
  flows to every token of its row, 1 / n_i of it to each. Equals
  token_log_ratio when T = 1.

  Args:
    logprobs: of the policy being trained, in nats.
    old_logprobs: of the policy that sampled, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    limit: bound of z in nats; no gradient beyond.

  Returns:
    Log-ratios in nats, constant in a row, 0 on padding.

  References:
    Zheng et al. 2025, GSPO, arXiv:2507.18071.
  """
  mean = _row_mean(_difference(logprobs, old_logprobs, mask), mask)
  return jnp.where(mask, jnp.clip(mean, -limit, limit), 0.0)


def sequence_sum_log_ratio(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  limit: float = 20.0,
  token_limit: float = float("inf"),
) -> Float[Array, "N T"]:
  """The sum over a completion's tokens, the same at each of them (RLOO, VESPO).

    s_i = sum_t m_it clip(logprobs - old_logprobs, -token_limit, token_limit)
    log_ratio_it = clip(s_i, -limit, limit)

  exp(s_i) is the importance ratio of the whole completion. Equals n_i times
  sequence_log_ratio where no limit is reached.

  Args:
    logprobs: of the policy being trained, in nats.
    old_logprobs: of the policy that sampled, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    limit: bound of s in nats; no gradient beyond.
    token_limit: bound of each token's log-ratio in nats (VESPO in TRL: 20).

  Returns:
    Log-ratios in nats, constant in a row, 0 on padding.

  References:
    Ahmadian et al. 2024, arXiv:2402.14740.
  """
  each = _difference(logprobs, old_logprobs, mask)
  total = jnp.clip(each, -token_limit, token_limit).sum(axis=1, keepdims=True)
  return jnp.where(mask, jnp.clip(total, -limit, limit), 0.0)


def sequence_token_log_ratio(
  logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  limit: float = 10.0,
) -> Float[Array, "N T"]:
  """Value of the sequence's mean, gradient of the token's own (GSPO-token).

    log_ratio_it = min(sg(z_i) + logprobs_it - sg(logprobs_it), limit)

  with z_i of sequence_log_ratio and sg() a constant. With credit that is equal
  in a row, value and gradient of a loss are those of sequence_log_ratio; with
  credit per token each token's credit stays its own.

  Args:
    logprobs: of the policy being trained, in nats.
    old_logprobs: of the policy that sampled, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    limit: bound from above in nats; no gradient beyond. verl's is 10.

  Returns:
    Log-ratios in nats, constant in a row, 0 on padding.

  References:
    Zheng et al. 2025, GSPO, arXiv:2507.18071.
  """
  each = _difference(logprobs, old_logprobs, mask)
  mean = jax.lax.stop_gradient(_row_mean(each, mask))
  own = each - jax.lax.stop_gradient(each)  # 0, with the token's gradient
  return jnp.where(mask, jnp.minimum(mean + own, limit), 0.0)


def sequence_log_weight(
  weights: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  level: str = "token",
  limit: float = 20.0,
) -> Float[Array, "N T"]:
  """Logarithm of the weight that a rollout correction gives a completion.

    u = clip(log weights, log 1e-8, limit)
    sum_t m_it u_it  (level "token"),  u_i  (level "sequence")

  Args:
    weights: not negative; 0 counts as 1e-8.
    mask: true on the policy's own tokens; the rest may hold anything.
    level: "token" when each token has a weight of its own, "sequence" when
      every token carries the weight of its completion.
    limit: bound of log weights in nats.

  Returns:
    Nats, constant in a row, 0 on padding; it has no gradient.

  Raises:
    ValueError: if level is neither.

  References:
    TRL's VESPO, arXiv:2602.10693.
  """
  check_level("level", level)
  chex.assert_equal_shape([weights, mask])
  known = jnp.where(mask, jax.lax.stop_gradient(weights), 1.0)
  logs = jnp.minimum(jnp.log(jnp.maximum(known, 1e-8)), limit)
  if level == "sequence":
    return jnp.where(mask, logs, 0.0)
  return jnp.where(mask, logs.sum(axis=1, keepdims=True), 0.0)


def check_level(name: str, level: str) -> None:
  """Raises ValueError unless level is "token" or "sequence"."""
  if level not in ("token", "sequence"):
    raise ValueError(f"{name} must be 'token' or 'sequence', got {level!r}.")


def _difference(logprobs, old_logprobs, mask) -> Float[Array, "N T"]:
  """Now minus before, 0 on padding whatever stands there."""
  chex.assert_equal_shape([logprobs, old_logprobs, mask])
  now = jnp.where(mask, logprobs, 0.0)
  return now - jnp.where(mask, old_logprobs, 0.0)


def _row_mean(values, mask) -> Float[Array, "N 1"]:
  """Over the tokens of a row; 0 for a row without any."""
  count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  return values.sum(axis=1, keepdims=True) / count
