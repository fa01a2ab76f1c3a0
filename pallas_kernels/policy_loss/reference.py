"""The truth: the loss as it is written, plain autodiff."""

import jax
import jax.numpy as jnp

from pallas_kernels.policy_loss import token_terms

_LIMIT, _BOUND = token_terms.LIMIT, token_terms.BOUND


def sums(logprob, old, ref, advantages, mask, beta, spec):
  """Returns token_terms.Terms of [N] sums.

  Args:
    logprob: [N, T] in nats; the only argument with a gradient.
    old: [N, T] in nats.
    ref: [N, T] in nats, or None.
    advantages: [N] or [N, T].
    mask: [N, T]; not 0 on the tokens that count.
    beta: scalar.
    spec: token_terms.Spec.
  """
  dtype = jnp.promote_types(logprob.dtype, jnp.float32)
  counts = mask != 0
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  known = lambda x: jnp.where(counts, x.astype(dtype), 0)  # noqa: E731
  logprob, old, a = known(logprob), known(old), known(advantages)
  log_ratio = _within(logprob - old, -_LIMIT, _LIMIT)
  ratio = jnp.exp(log_ratio)
  low, high = 1.0 - spec.clip_low, 1.0 + spec.clip_high
  loss = -jnp.minimum(ratio * a, _within(ratio, low, high) * a)
  beyond = jnp.zeros_like(counts)
  if spec.dual_clip is not None:
    beyond = (a < 0) & (ratio > spec.dual_clip)
    loss = jnp.where(beyond, -spec.dual_clip * a, loss)
  kl = jnp.zeros_like(loss)
  if ref is not None:
    kl = _kl(spec.kl, logprob - known(ref), log_ratio)
  terms = token_terms.Terms(
    loss=loss + beta * kl,
    tokens=counts,
    kl=jax.lax.stop_gradient(kl),
    ratio=jax.lax.stop_gradient(ratio),
    approx_kl=jax.lax.stop_gradient(jnp.expm1(log_ratio) - log_ratio),
    clipped_low=(ratio < low) & (a < 0),
    clipped_high=(ratio > high) & (a > 0),
    dual_clipped=beyond,
  )
  total = lambda x: jnp.where(counts, x, 0).astype(dtype).sum(1)  # noqa: E731
  return token_terms.Terms(*map(total, terms))


def _within(x, low, high):
  """x held in [low, high]; the whole gradient on the borders too.

  jnp.clip gives half of it there.
  """
  return jnp.where(x < low, low, jnp.where(x > high, high, x))


def _kl(name, d, log_ratio):
  """The estimators of Schulman 2020 and what others made of them."""
  constant = jax.lax.stop_gradient
  if name == "exact":
    ratio = jnp.exp(constant(log_ratio))
    return ratio * (_k3(constant(d)) + constant(d) * (d - constant(d)))
  if name.startswith("ratio_"):
    base = name.removeprefix("ratio_")
    if base == "low_var_kl":
      return _within(jnp.exp(log_ratio) * _k3(d), -_BOUND, _BOUND)
    return jnp.exp(log_ratio) * _kl(base, d, log_ratio)
  if name.endswith("+"):
    value = constant(_kl(name.removesuffix("+"), d, log_ratio))
    return value + 0.5 * (d**2 - constant(d) ** 2)
  return {
    "k1": lambda: d,
    "k2": lambda: 0.5 * d**2,
    "abs": lambda: jnp.sign(d) * d,
    "k3": lambda: _k3(d),
    "low_var_kl": lambda: _within(_k3(d), -_BOUND, _BOUND),
  }[name]()


def _k3(d):
  return jnp.expm1(-_within(d, -_LIMIT, jnp.inf)) + d
