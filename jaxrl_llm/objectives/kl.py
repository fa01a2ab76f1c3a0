"""Estimators of KL(pi || ref) from one sampled token, on bare arrays.

With d = log pi - log ref of a token that pi sampled, and the gradient taken
through d alone, expectations over the tokens are

    name         value     gradient
    k1           KL        0: as a loss it does nothing
    k2           biased    of KL(pi || ref), exact
    absolute     biased    of neither direction
    k3           KL        of KL(ref || pi), the other direction
    low_var_kl   KL        as k3, where no bound is reached

Two things mend a gradient. straight_through gives the value of one estimator
the gradient of another: with k2's it is exact on-policy. times_ratio weighs
an estimate by pi / pi_old, not detached: then the value is that under pi and
the gradient that of this value, on-policy and off: exact for k1 and k3. The
tests take these expectations by enumeration.

Schulman 2020, "Approximating KL Divergence"; Tang and Munos 2025,
arXiv:2506.09477.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """d: unbiased, of either sign; zero expected gradient as a loss.

  Args:
    log_ratio: d, in nats.
  """
  return log_ratio


def k2(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """d^2 / 2: biased in value, exact in gradient on-policy.

  Args:
    log_ratio: d, in nats.
  """
  return 0.5 * log_ratio**2


def absolute(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """|d|: biased in value, and in gradient that of no KL (verl "abs").

  Args:
    log_ratio: d, in nats; at 0 the gradient is 0, where jnp.abs has 1.
  """
  return jnp.sign(log_ratio) * log_ratio


def k3(
  log_ratio: Float[Array, "*shape"], *, limit: float = 20.0
) -> Float[Array, "*shape"]:
  """exp(-d) + d - 1: unbiased, not negative, 0 only at d = 0.

  Args:
    log_ratio: d, in nats.
    limit: the exponent stops here, in nats, so that exp is finite in float32;
      TRL, OpenRLHF and slime have no limit, open-instruct has 40.
  """
  return jnp.expm1(-jnp.maximum(log_ratio, -limit)) + log_ratio


def low_var_kl(
  log_ratio: Float[Array, "*shape"], *, bound: float = 10.0
) -> Float[Array, "*shape"]:
  """k3 kept below a bound, without gradient beyond (verl k3 and low_var_kl).

    min(exp(-d) + d - 1, bound)

  verl bounds d to 20 nats first, slime does not: the two are one function, for
  beyond 20 nats k3 is beyond 10 on either side.

  Args:
    log_ratio: d, in nats.
    bound: in nats, at most 18.
  """
  return bounded(k3(jnp.clip(log_ratio, -20.0, 20.0)), bound=bound)


def bounded(
  estimate: Float[Array, "*shape"], *, bound: float = 10.0
) -> Float[Array, "*shape"]:
  """An estimate kept within [-bound, bound], without gradient beyond.

  OpenRLHF bounds every estimator so, verl k3 alone; slime bounds low_var_kl
  after times_ratio.

  Args:
    estimate: in nats.
    bound: in nats.
  """
  return jnp.clip(estimate, -bound, bound)


def straight_through(
  value: Float[Array, "*shape"], gradient: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """The value of one estimate with the gradient of another (verl's "+").

    sg(value) + gradient - sg(gradient)

  verl: the value of the estimator named, the gradient of k2.

  Args:
    value: gives its numbers.
    gradient: gives its derivatives.
  """
  chex.assert_equal_shape([value, gradient])
  constant = jax.lax.stop_gradient(gradient)
  return jax.lax.stop_gradient(value) + (gradient - constant)


def times_ratio(
  estimate: Float[Array, "N T"], log_ratio: Float[Array, "N T"]
) -> Float[Array, "N T"]:
  """An estimate weighed by pi / pi_old, which is not detached.

    exp(log_ratio) * estimate

  With k3 the corrected KL of DeepSeek-V3.2 (TRL use_bias_correction_kl), with
  k1 the fourth estimator of open-instruct, whose gradient r (d + 1) is right
  on average but pure noise where pi = ref.

  Args:
    estimate: of the KL to the reference, in nats.
    log_ratio: log pi - log pi_old in nats, of the token; TRL with sequence
      ratios takes that of the sequence here too.

  References:
    DeepSeek-AI 2025, arXiv:2512.02556, section 3.1.
  """
  chex.assert_equal_shape([estimate, log_ratio])
  return jnp.exp(log_ratio) * estimate


def exact(
  log_ratio: Float[Array, "*shape"], old_log_ratio: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """The value of times_ratio of k3, its gradient written out: r d.

    r = exp(old_log_ratio);  value = r k3(d);  d value / d logprobs = r d

  for the gradient of r k3(d), r not detached, is r (k3(d) + 1 - exp(-d)). Here
  nothing overflows where pi << ref. Exact in value and gradient, also after
  several updates on one rollout; at r = 1 it is k3 with the gradient of k2.

  Args:
    log_ratio: d, log pi - log ref, in nats; the gradient flows through it.
    old_log_ratio: log pi - log pi_old, in nats; held constant.
  """
  chex.assert_equal_shape([log_ratio, old_log_ratio])
  ratio = jnp.exp(jax.lax.stop_gradient(old_log_ratio))
  constant = jax.lax.stop_gradient(log_ratio)
  return ratio * (k3(constant) + constant * (log_ratio - constant))
