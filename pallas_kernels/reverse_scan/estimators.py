"""Returns, GAE and V-trace on reverse_scan.

In all of them t + 1 is the next token of the mask. A masked token, of a tool
for instance, takes no time: decay 1 and x 0, so that what is known of the token
behind it passes through to the one before. What stands on it, rewards, values,
inf or NaN, is not looked at.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.reverse_scan import api, xla


class Gae(NamedTuple):
  """Generalised advantages.

  Attributes:
    advantages: [N, T] in units of reward, not whitened.
    returns: [N, T] targets of the critic, advantages + values.
  """

  advantages: jax.Array
  returns: jax.Array


class Vtrace(NamedTuple):
  """V-trace; both are constants for the loss.

  Attributes:
    targets: [N, T] v_t, what the critic should have said.
    advantages: [N, T] what multiplies the policy's log-probability.
  """

  targets: jax.Array
  advantages: jax.Array


def discounted_returns(
  rewards: jax.Array,
  mask: jax.Array,
  *,
  gamma: float | jax.Array = 1.0,
  bootstrap: jax.Array | None = None,
  carry: bool = False,
  impl: str | None = None,
) -> jax.Array:
  """What a token and those after it earn.

    G_t = q_t + gamma G_{t+1}

  One scan: decay gamma, x = q. With gamma = 1 it is the sum to go.

  Args:
    rewards: [N, T] q; differentiable.
    mask: [N, T] bool, true on tokens that count; may have holes.
    gamma: discount a token, in [0, 1]; a float or a traced scalar.
    bootstrap: [N] return behind the last token; None is 0.
    carry: leaves on a masked token the return that passes through it, instead
      of 0.
    impl: see dispatch.py.

  Returns:
    G [N, T], float32 (float64 if the rewards are).

  Raises:
    ValueError: if gamma is a number outside [0, 1], or shapes do not fit.
  """
  _check(mask, {"rewards": rewards}, {"gamma": gamma}, bootstrap)
  (rewards,) = _masked(mask, rewards)
  returns = _through(mask, rewards, gamma, bootstrap, impl)
  return returns if carry else jnp.where(mask, returns, 0)


def gae(
  rewards: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  gamma: float | jax.Array = 1.0,
  lam: float | jax.Array = 1.0,
  bootstrap: jax.Array | None = None,
  carry: bool = False,
  impl: str | None = None,
) -> Gae:
  """Discounted sum of the critic's surprises, and its targets (GAE).

    delta_t = q_t + gamma v_{t+1} - v_t
    A_t = delta_t + gamma lam A_{t+1}
    returns_t = A_t + v_t

  Two scans: v_{t+1} over the holes of the mask, then A. With lam = 1 returns
  are discounted_returns, with lam = 0 A_t is delta_t.

  Args:
    rewards: [N, T] q; differentiable.
    values: [N, T] v, the critic's before the step; no gradient comes back.
    mask: [N, T] bool, true on tokens that count; may have holes.
    gamma: discount a token, in [0, 1]; a float or a traced scalar.
    lam: in [0, 1]; 1 trusts the rewards alone, 0 the value of the next token.
    bootstrap: [N] value behind the last token of a row that was cut off; None
      is 0.
    carry: leaves on a masked token the advantage that passes through it, and
      that plus its value as its return, instead of 0.
    impl: see dispatch.py.

  Returns:
    Gae, float32 (float64 if an argument is).

  Raises:
    ValueError: if gamma or lam is a number outside [0, 1], or shapes do not
      fit.

  References:
    Schulman et al. 2016, arXiv:1506.02438, eq. 16.
  """
  arrays = {"rewards": rewards, "values": values}
  _check(mask, arrays, {"gamma": gamma, "lam": lam}, bootstrap)
  values = jax.lax.stop_gradient(values)
  q, v = _masked(mask, rewards, values)
  v_next = _next(mask, v, bootstrap, impl)
  delta = jnp.where(mask, q + gamma * v_next - v, 0)
  advantages = _through(mask, delta, gamma * lam, None, impl)
  if carry:
    return Gae(advantages, advantages + values)
  advantages = jnp.where(mask, advantages, 0)
  return Gae(advantages, advantages + v)


def vtrace(
  log_ratio: jax.Array,
  rewards: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  gamma: float | jax.Array = 1.0,
  lam: float | jax.Array = 1.0,
  rho_bar: float = 1.0,
  c_bar: float = 1.0,
  bootstrap: jax.Array | None = None,
  impl: str | None = None,
) -> Vtrace:
  """Off-policy targets of a critic and advantages of a policy (V-trace).

    rho_t = min(rho_bar, e^log_ratio_t);  c_t = lam min(c_bar, e^log_ratio_t)
    delta_t = rho_t (q_t + gamma v_{t+1} - v_t)
    targets_t = v_t + sum_{s >= t} gamma^(s-t) (c_t ... c_{s-1}) delta_s
    advantages_t = rho_t (q_t + gamma targets_{t+1} - v_t)

  Two scans: v_{t+1} over the holes of the mask, then targets - v, with decay
  gamma c and x delta. On-policy (log_ratio 0, both bars at least 1) targets
  are the returns of gae with the same lam, and with lam = 1 advantages are
  those of gae. rho_bar says whose values are learnt (infinite: the policy's,
  0: the sampler's), c_bar only how fast.

  Args:
    log_ratio: [N, T] log pi - log mu of the tokens, in nats, pi the policy, mu
      what sampled; no gradient comes back, here or to the others.
    rewards: [N, T] q.
    values: [N, T] v, the critic's before the step.
    mask: [N, T] bool, true on tokens that count; may have holes.
    gamma: discount a token, in [0, 1]; a float or a traced scalar.
    lam: in [0, 1], the paper's remark 2.
    rho_bar: largest weight of an error, positive, at least c_bar.
    c_bar: largest weight that passes an error on, positive.
    bootstrap: [N] value behind the last token of a row that was cut off; None
      is 0.
    impl: see dispatch.py.

  Returns:
    Vtrace, 0 outside the mask, float32 (float64 if an argument is).

  Raises:
    ValueError: if gamma or lam is a number outside [0, 1], rho_bar is less
      than c_bar or c_bar not positive, or shapes do not fit.

  References:
    Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2.
  """
  arrays = {"log_ratio": log_ratio, "rewards": rewards, "values": values}
  _check(mask, arrays, {"gamma": gamma, "lam": lam}, bootstrap)
  if not 0 < c_bar <= rho_bar:
    raise ValueError(
      f"vtrace needs 0 < c_bar <= rho_bar, got c_bar={c_bar},"
      f" rho_bar={rho_bar}."
    )
  constants = map(jax.lax.stop_gradient, (log_ratio, rewards, values))
  log_ratio, q, v = _masked(mask, *constants)
  ratio = jnp.exp(log_ratio)
  rho, c = jnp.minimum(rho_bar, ratio), lam * jnp.minimum(c_bar, ratio)
  v_next = _next(mask, v, bootstrap, impl)
  delta = jnp.where(mask, rho * (q + gamma * v_next - v), 0)
  error = _through(mask, delta, gamma * c, None, impl)
  error_next = xla.later(error, None)
  advantages = rho * (q + gamma * (v_next + error_next) - v)
  targets = jnp.where(mask, v + error, 0)
  return Vtrace(targets, jnp.where(mask, advantages, 0))


def _masked(mask, *arrays):
  """The arrays in the dtype of the results, 0 outside the mask."""
  dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
  return [jnp.where(mask, x.astype(dtype), 0) for x in arrays]


def _through(mask, x, decay, init, impl):
  """reverse_scan of x, which is 0 outside the mask, over the mask's tokens."""
  decay = jnp.where(mask, jnp.asarray(decay, x.dtype), jnp.ones((), x.dtype))
  return api.reverse_scan(decay, x, init=init, impl=impl)


def _next(mask, values, last, impl):
  """Of each place, the value of the next token of the mask; `last` behind."""
  return xla.later(_through(mask, values, 0.0, last, impl), last)


def _check(mask, arrays, discounts, bootstrap):
  for name, discount in discounts.items():
    if isinstance(discount, int | float) and not 0 <= discount <= 1:
      raise ValueError(f"{name} must be in [0, 1], got {discount}.")
  for name, array in arrays.items():
    if mask.ndim != 2 or array.shape != mask.shape:
      raise ValueError(
        f"{name} must be of the shape of mask, [N, T], got {array.shape} and"
        f" {mask.shape}."
      )
  if mask.dtype != bool:
    raise TypeError(f"mask must be bool, got {mask.dtype}; compare it with 0.")
  if bootstrap is not None and bootstrap.shape != mask.shape[:1]:
    raise ValueError(
      f"bootstrap must be [N] {mask.shape[:1]}, got {bootstrap.shape}."
    )
