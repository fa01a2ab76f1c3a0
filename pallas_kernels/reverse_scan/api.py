"""The door: checks, the choice of implementation, and the gradient."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.reverse_scan import reference, xla

_NAME = "reverse_scan"


def reverse_scan(
  decay: jax.Array,
  x: jax.Array,
  *,
  init: jax.Array | None = None,
  impl: str | None = None,
) -> jax.Array:
  """Solves y_t = x_t + decay_t y_{t+1} from the last token to the first.

    y_T = init;  y_t = x_t + decay_t y_{t+1},  t = T - 1, ... 0

  Discounted returns, GAE and V-trace are this with their own decay and x. A
  token that takes no time, of a tool or of padding, has decay 1 and x 0: its
  y is exactly that of the next one.

  A decay of 0 cuts: y_t is x_t whatever lies behind it, inf and NaN included
  (0 inf would be NaN). Everywhere else they spread as arithmetic has it, so x
  must be masked before: padding counts like any token.

  Differentiable in all three arguments; with g the gradient of y,

    z_0 = g_0;  z_t = g_t + decay_{t-1} z_{t-1}
    d x_t = z_t;  d decay_t = z_t y_{t+1};  d init = decay_{T-1} z_{T-1}

  which is the same scan, forwards.

  Memory: the kernel has no temporaries, forwards or backwards (for d decay it
  keeps y); XLA transposes its arguments and its result.

  "auto" runs the kernel on TPU, a lax.scan elsewhere.

  Args:
    decay: [N, T], for the kernel |decay| <= 1 (longer products must be finite).
    x: [N, T].
    init: [N], what follows the last token; None is 0.
    impl: see dispatch.py; None follows JAXRL_KERNELS, then the platform.

  Returns:
    y [N, T], float32, or float64 if an argument is.

  Raises:
    ValueError: if the shapes do not fit.
    TypeError: if an argument is not floating.
    blocks.Unsupported: if impl asks for the kernel and an array is empty or
      neither float32 nor bfloat16.
  """
  _check(decay, x, init)
  impl = dispatch.choose(_NAME, impl, kernel=True)
  return _reverse_scan(*_varying_alike(decay, x, init), impl)


# Jitted so that calls outside of jit are compiled once.
@functools.partial(jax.jit, static_argnums=3)
def _reverse_scan(decay, x, init, impl):
  if impl == "reference":
    return reference.scan(decay, x, init)
  return _solved(decay, x, init, (impl, x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _solved(decay, x, init, static):
  return dispatch.call(
    _NAME,
    static[0],
    *(decay, x, init),
    xla=xla.scan,
    reference=reference.scan,
    pallas=functools.partial(_kernel, "scan"),
  )


def _solved_fwd(decay, x, init, static):
  y = _solved(decay, x, init, static)
  return y, (decay, y, init)


def _solved_bwd(static, residuals, g):
  decay, y, init = residuals
  impl, x_dtype = static
  z = dispatch.call(
    _NAME,
    impl,
    *(decay, g),
    xla=xla.adjoint,
    reference=xla.adjoint,
    pallas=functools.partial(_kernel, "adjoint"),
  )
  later = xla.later(y, init)
  # Behind a cut y may be inf; where it is finite a decay of 0 has a gradient.
  later = jnp.where((decay == 0) & ~jnp.isfinite(later), 0, later)
  d_init = None
  if init is not None:
    d_init = xla.product(decay[:, -1], z[:, -1]).astype(init.dtype)
  return (z * later).astype(decay.dtype), z.astype(x_dtype), d_init


_solved.defvjp(_solved_fwd, _solved_bwd)


def _kernel(name, *args, interpret):
  from pallas_kernels.reverse_scan import tpu  # half a second, for a TPU

  return getattr(tpu, name)(*args, interpret=interpret)


def _varying_alike(*arrays):
  """In shard_map: all vary over the axes that one of them varies over.

  A loop's carry and a gradient must have the type of what they stand for.
  """
  varying = [
    frozenset() if x is None else jax.typeof(x).manual_axis_type.varying
    for x in arrays
  ]
  every = frozenset().union(*varying)

  def mark(x, own):
    missing = tuple(sorted(every - own))
    if x is None or not missing:
      return x
    return jax.lax.pcast(x, missing, to="varying")

  return tuple(map(mark, arrays, varying))


def _check(decay, x, init):
  shapes = decay.shape, x.shape, None if init is None else init.shape
  fits = x.ndim == 2 and x.shape[1] > 0 and decay.shape == x.shape
  if not fits or shapes[2] not in (None, x.shape[:1]):
    raise ValueError(
      "reverse_scan needs decay [N, T], x [N, T] with T >= 1, and init [N] or"
      f" None, got {shapes}."
    )
  for array in (decay, x, init):
    if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
      raise TypeError(
        "reverse_scan needs floating decay, x and init, got"
        f" {array.dtype}; cast it, a mask for instance, to float32."
      )
