"""Log importance ratios between the current and the sampling policy."""

import chex
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
  chex.assert_equal_shape([logprobs, old_logprobs, mask])
  now = jnp.where(mask, logprobs, 0.0)
  before = jnp.where(mask, old_logprobs, 0.0)
  return jnp.clip(now - before, -limit, limit)
