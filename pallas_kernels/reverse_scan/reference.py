"""The truth: one line a step, plain autodiff."""

import jax
import jax.numpy as jnp


def scan(decay, x, init):
  """Returns y [N, T], y_t = x_t + decay_t y_{t+1}, y_T = init.

  A decay of 0 cuts: what is behind it may be inf or NaN.

  Args:
    decay: [N, T].
    x: [N, T].
    init: [N], or None for 0.
  """
  dtype = jnp.promote_types(jnp.result_type(decay, x), jnp.float32)
  start = jnp.zeros_like(x[:, 0]) if init is None else init

  def step(later, column):
    decay, x = column
    cut = (decay == 0) & ~jnp.isfinite(later)
    y = x + decay * jnp.where(cut, 0, later)
    return y, y

  columns = decay.T.astype(dtype), x.T.astype(dtype)
  return jax.lax.scan(step, start.astype(dtype), columns, reverse=True)[1].T
