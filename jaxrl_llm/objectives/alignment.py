"""Pulling two distributions together on good rollouts, apart on bad ones."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def signed_divergence(
  divergence: Float[Array, "N T"],
  advantages: Float[Array, "N T"],
  weights: Float[Array, "N T"],
) -> Float[Array, ""]:
  """Minimised, it closes a gap where the credit is positive, else opens it.

    sum_it w_it A_it d_it

  Args:
    divergence: d, nats; gradients flow here.
    advantages: A, signed credit, a constant.
    weights: w, those of a mean over tokens (weighting.token_mean); what has
      weight 0 may hold anything in A.

  Returns:
    Credit times nats; at most max(d) mean |A| in size.

  References:
    OISD, arXiv:2605.29089.
  """
  chex.assert_equal_shape([divergence, advantages, weights])
  credit = jnp.where(weights != 0, weights * advantages, 0.0)
  return (jax.lax.stop_gradient(credit) * divergence).sum()
