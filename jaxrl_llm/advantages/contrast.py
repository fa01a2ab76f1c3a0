"""Credit of tokens by what another prompt would have changed (GCPO)."""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Ties = Literal["mean", "order"]


def contrast(
  logprobs: Float[Array, "N T"],
  negative_logprobs: Float[Array, "N T"],
  *,
  limit: float = 20.0,
  bound: float = 10.0,
) -> Float[Array, "N T"]:
  """How much a token's probability depends on the prompt, never negative.

    d = clip(negative_logprobs - logprobs, -limit, limit)
    D = min(exp(d) - d - 1, bound)

  the k3 estimate of KL(pi(. | prompt) || pi(. | negative prompt)) by the token
  that was sampled. Tokens stand for themselves: give finite numbers.

  Args:
    logprobs: under the prompt, in nats.
    negative_logprobs: of the same tokens under the negative prompt, in nats.
    limit: of d, in nats.
    bound: of D, in nats.

  References:
    GCPO, arXiv:2605.29198.
  """
  chex.assert_equal_shape([logprobs, negative_logprobs])
  d = jnp.clip(negative_logprobs - logprobs, -limit, limit)
  return jnp.clip(jnp.expm1(d) - d, 0.0, bound)


def concentration(*, top: float = 0.4, mass: float = 0.8) -> float:
  """The power kappa at which a share of the tokens has a share of the weight.

    kappa = log(1 - mass) / log(1 - top) - 1

  of a weight u^kappa over ranks u in (0, 1]; 0, all alike, for mass = top.

  Args:
    top: share of the tokens, in (0, 1).
    mass: share of the weight that they have, in [top, 1).

  Raises:
    ValueError: if one is not.
  """
  if not 0 < top <= mass < 1:
    raise ValueError(
      "top and mass must be shares with 0 < top <= mass < 1, got"
      f" {top} and {mass}."
    )
  return math.log1p(-mass) / math.log1p(-top) - 1.0


def rank_weights(
  values: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  kappa: float,
  ties: Ties = "mean",
) -> Float[Array, "N T"]:
  """Weights of mean 1 in each row that rise with the rank of a value alone.

    u_t = rank_t / n,  w_t = n u_t^kappa / sum_s u_s^kappa

  over the n tokens of the mask; the smallest value has rank 1.

  Args:
    values: one a token; finite on the mask, anything outside it.
    mask: true on tokens that count.
    kappa: 0 or more; 0 gives every token 1.
    ties: equal values share their "mean" rank, so that they have equal weights,
      or are ranked in the "order" of the tokens.

  Returns:
    Weights that sum to n in a row, 0 outside the mask.
  """
  chex.assert_equal_shape([values, mask])
  values = jnp.where(mask, values, jnp.inf)
  order = jnp.argsort(values, axis=1, stable=True)
  if ties == "order":
    ranks = jnp.argsort(order, axis=1) + 1
  else:
    ordered = jnp.take_along_axis(values, order, axis=1)
    below = jax.vmap(jnp.searchsorted)(ordered, values)
    up_to = jax.vmap(lambda x, v: jnp.searchsorted(x, v, side="right"))(
      ordered, values
    )
    ranks = 0.5 * (below + up_to + 1)
  ranks = ranks.astype(values.dtype)
  count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  return _of_mean_1(jnp.where(mask, ranks / count, 1.0) ** kappa, mask)


def linear_weights(
  values: Float[Array, "N T"], mask: Bool[Array, "N T"]
) -> Float[Array, "N T"]:
  """Weights of mean 1 in each row, in proportion to the values.

    w_t = n v_t / sum_s v_s;  1 where the sum is below 1e-8

  Args:
    values: one a token, not negative; anything outside the mask.
    mask: true on tokens that count.

  Returns:
    Weights that sum to n in a row, 0 outside the mask.
  """
  chex.assert_equal_shape([values, mask])
  values = jnp.where(mask, values, 0.0)
  none = values.sum(axis=1, keepdims=True) < 1e-8
  return _of_mean_1(jnp.where(none, 1.0, values), mask)


def _of_mean_1(values, mask) -> Float[Array, "N T"]:
  values = jnp.where(mask, values, 0.0)
  total = values.sum(axis=1, keepdims=True)
  count = mask.sum(axis=1, keepdims=True)
  return values * (count / jnp.where(total > 0, total, 1.0))
