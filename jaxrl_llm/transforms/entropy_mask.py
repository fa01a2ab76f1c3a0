"""Tokens of high entropy: which they are, and a bonus for their entropy."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import types
from jaxrl_llm.transforms import chain, off_policy


def top_entropy(
  entropy: Float[Array, "N T"], mask: Bool[Array, "N T"], *, rho: float = 0.2
) -> Bool[Array, "N T"]:
  """The share rho of all tokens of the batch with the highest entropy.

    h = quantile_{1 - rho} of the entropy over the mask, interpolated linearly
    keep = mask and entropy >= h

  Ties with h are kept. rho = 1 keeps every token, rho = 0 only the maximum.

  Args:
    entropy: nats; may hold anything outside the mask.
    mask: true on tokens that count.
    rho: share to keep, in [0, 1] (TRL top_entropy_quantile).

  Returns:
    A mask within `mask`.

  Raises:
    ValueError: if rho is outside [0, 1].

  References:
    Wang et al. 2025, Beyond the 80/20 Rule, arXiv:2506.01939.
  """
  check_rho(rho)
  chex.assert_equal_shape([entropy, mask])
  threshold = masked_quantile(entropy, mask, 1.0 - rho)
  return mask & (jnp.where(mask, entropy, -jnp.inf) >= threshold)


def masked_quantile(
  values: Float[Array, "..."], mask: Bool[Array, "..."], q: float
) -> Float[Array, ""]:
  """Quantile of the values in the mask, interpolated linearly.

  The position q (n - 1) is taken as a whole number where it is one but for
  rounding: else a token on the boundary would be in or out by the dtype.

  Args:
    values: may hold anything outside the mask.
    mask: n of them are true.
    q: in [0, 1].

  Returns:
    The quantile; 0 when the mask is empty.
  """
  ascending = jnp.sort(jnp.where(mask, values, jnp.inf), axis=None)
  count = mask.sum()
  last = jnp.maximum(count - 1, 0).astype(values.dtype)
  position = q * last
  whole = jnp.round(position)
  near = jnp.abs(position - whole) <= 1e-6 * last
  position = jnp.where(near, whole, position)
  below = jnp.floor(position).astype(int)
  above = jnp.minimum(below + 1, last.astype(int))
  share = position - below
  low, high = ascending[below], ascending[above]
  between = low + share * (high - low)
  found = jnp.where(share > 0, between, low)
  return jnp.where(count > 0, found, 0.0)


def bonus_factor(
  weights: Float[Array, "N T"], tokens: Bool[Array, "N T"]
) -> Float[Array, "N T"]:
  """What turns a sum with the loss's weights into a mean over some tokens.

    f_it = e_it / (w_it max(sum e, 1)),  so that  sum(w f H) = mean of H over e

  A bonus is then the same whatever the weighting of the loss (TRL), and still
  a sum that adds up over the pieces of a batch.

  Args:
    weights: w, of the loss; where 0 a token is no part of the mean.
    tokens: e.
  """
  chex.assert_equal_shape([weights, tokens])
  tokens = tokens & (weights > 0)
  count = jnp.maximum(tokens.sum(), 1)
  return jnp.where(tokens, 1.0 / (jnp.where(tokens, weights, 1.0) * count), 0.0)


def top_entropy_mask(*, rho: float = 0.2) -> types.RolloutTransform:
  """Sets the policy loss of all but the top tokens to 0; see top_entropy.

  Reads extras["old_entropy"]: the method must need "old_scores" and "entropy".
  Writes extras["top_entropy"], true on the tokens that stay, and makes it a
  factor of extras["keep"]; denominators and penalties do not notice.

  Args:
    rho: share of the tokens to keep, in [0, 1].

  Returns:
    A transform without state.
  """
  check_rho(rho)

  def mark(rollout):
    if "old_entropy" not in rollout.extras:
      raise ValueError(
        "extras has no old_entropy: the method must name 'old_scores' and"
        " 'entropy' in `needs`."
      )
    entropy = rollout.extras["old_entropy"]
    counted = rollout.mask & (rollout.weights > 0)[:, None]
    keep = top_entropy(entropy, counted, rho=rho)
    rollout = off_policy.multiplied(rollout, "keep", keep.astype(entropy.dtype))
    return rollout.replace(extras=rollout.extras | {"top_entropy": keep})

  return chain.stateless(mark)


def check_rho(rho: float) -> None:
  """Raises ValueError unless rho is in [0, 1]."""
  if not 0 <= rho <= 1:
    raise ValueError(f"rho must be a share of the tokens in [0, 1], got {rho}.")
