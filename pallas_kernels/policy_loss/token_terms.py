"""One token's share of every sum, and the slope of its loss, by hand.

Elementwise arithmetic that XLA and the TPU kernel share; reference.py says the
same in other words and leaves the slope to autodiff. With A the advantage,
d = logprob - ref and sg() a constant:

  log_ratio = bounded(logprob - old, -20, 20);  r = e^log_ratio
  r' = r, or the bound that holds it: 1 - clip_low (A < 0), 1 + clip_high
       (A > 0), dual_clip (A < 0)
  loss = -r' A + beta kl(d, r)
  slope = d loss / d logprob
        = -r A, or 0 where a bound holds r, + beta d kl / d logprob
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LIMIT = 20.0  # nats; keeps e^x finite in float32
BOUND = 10.0  # nats; of the low_var_kl pair

KL_NAMES = (
  *("exact", "k3", "k1", "k2", "abs", "low_var_kl"),
  *("k1+", "k3+", "abs+", "low_var_kl+"),
  *("ratio_k1", "ratio_k2", "ratio_k3", "ratio_abs", "ratio_low_var_kl"),
)


class Spec(NamedTuple):
  """What is known when tracing.

  Attributes:
    clip_low: the ratio is held above 1 - clip_low where A < 0.
    clip_high: and below 1 + clip_high where A > 0.
    dual_clip: and below this where A < 0, or None.
    kl: one of KL_NAMES.
  """

  clip_low: float
  clip_high: float
  dual_clip: float | None
  kl: str


class Terms(NamedTuple):
  """What is summed over a row's tokens; the fields of api.RowSums say what."""

  loss: jax.Array
  tokens: jax.Array
  kl: jax.Array
  ratio: jax.Array
  approx_kl: jax.Array
  clipped_low: jax.Array
  clipped_high: jax.Array
  dual_clipped: jax.Array


def token_terms(
  logprob: jax.Array,
  old: jax.Array,
  ref: jax.Array | None,
  advantages: jax.Array,
  mask: jax.Array,
  beta: jax.Array,
  spec: Spec,
  *,
  expm1: Callable[[jax.Array], jax.Array] = jnp.expm1,
) -> tuple[Terms, jax.Array]:
  """Terms of each token and d loss / d logprob; all 0 where mask is false.

  Args:
    logprob: in nats, of one shape and dtype with the arrays that follow.
    old: in nats.
    ref: in nats, or None for no KL.
    advantages: of each token.
    mask: bool; the rest may hold anything.
    beta: scalar.
    spec: the bounds and the KL.
    expm1: e^x - 1, for a compiler that has none.
  """
  known = lambda x: jnp.where(mask, x, 0)  # noqa: E731
  logprob, old, advantages = map(known, (logprob, old, advantages))
  difference = logprob - old
  log_ratio = jnp.clip(difference, -LIMIT, LIMIT)
  ratio = jnp.exp(log_ratio)
  moves = jnp.abs(difference) <= LIMIT
  used, free, held = _hold(ratio, advantages, spec)
  loss = -used * advantages
  slope = jnp.where(free & moves, loss, 0)
  kl = jnp.zeros_like(loss)
  if ref is not None:
    d = logprob - known(ref)
    kl, kl_slope = _kl(spec.kl, d, ratio, moves, expm1)
    loss = loss + beta * kl
    slope = slope + beta * kl_slope
  terms = Terms(
    loss=loss,
    tokens=mask.astype(loss.dtype),
    kl=kl,
    ratio=known(ratio),
    approx_kl=expm1(log_ratio) - log_ratio,
    clipped_low=held[0].astype(loss.dtype),
    clipped_high=held[1].astype(loss.dtype),
    dual_clipped=held[2].astype(loss.dtype),
  )
  return terms, known(slope)


def _hold(ratio, advantages, spec):
  """The ratio as the loss uses it, where it is free, and the three holds.

  A ratio exactly on a bound is free: the gradient flows.
  """
  low = (ratio < 1.0 - spec.clip_low) & (advantages < 0)
  high = (ratio > 1.0 + spec.clip_high) & (advantages > 0)
  used = jnp.where(low, 1.0 - spec.clip_low, ratio)
  used = jnp.where(high, 1.0 + spec.clip_high, used)
  if spec.dual_clip is None:
    return used, ~(low | high), (low, high, low & high)
  beyond = (ratio > spec.dual_clip) & (advantages < 0)
  used = jnp.where(beyond, spec.dual_clip, used)
  return used, ~(low | high | beyond), (low, high, beyond)


def _kl(name, d, ratio, moves, expm1):
  """(value, slope) of the estimator of that name."""
  if name == "exact":
    return ratio * _k3(d, expm1)[0], ratio * d
  base = name.removeprefix("ratio_").removesuffix("+")
  if name == "ratio_low_var_kl":
    base = "k3"  # its bound is that of the product
  value, slope = _ESTIMATORS[base](d, expm1)
  if name.endswith("+"):
    slope = d
  if name.startswith("ratio_"):
    slope = ratio * (slope + jnp.where(moves, value, 0))
    value = ratio * value
  if name == "ratio_low_var_kl":
    return _below(value, slope)
  return value, slope


def _k3(d, expm1):
  grown = expm1(-jnp.maximum(d, -LIMIT))
  return grown + d, jnp.where(d < -LIMIT, 1.0, -grown)


def _below(value, slope):
  return jnp.minimum(value, BOUND), jnp.where(value > BOUND, 0.0, slope)


# (d, expm1) -> value and slope.
_ESTIMATORS = {
  "k1": lambda d, _: (d, jnp.ones_like(d)),
  "k2": lambda d, _: (0.5 * d * d, d),
  "abs": lambda d, _: (jnp.abs(d), jnp.sign(d)),
  "k3": _k3,
  "low_var_kl": lambda d, expm1: _below(*_k3(d, expm1)),
}
