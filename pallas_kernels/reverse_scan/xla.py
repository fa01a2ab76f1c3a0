"""The recurrence and its adjoint as lax.scan, unrolled where that pays.

  scan     y_t = x_t + decay_t y_{t+1},  y_T = init
  adjoint  z_t = g_t + decay_{t-1} z_{t-1},  z_0 = g_0

An accelerator pays for each step of a loop and for reading a strided column,
so 16 steps go into one. The CPU does not, and would compile three times as
long; it pays for transposing large arrays, so it takes a block of rows at a
time: a quarter of the time and a sixtieth of the memory at N = 4096, T = 1024.

Never jax.lax.associative_scan: for N = 4096, T = 8192 float32 on TPU v5e it
compiles for 31 s where this takes half a second, moves 7 GB where the kernel
moves 0.4, has 448 MiB of temporaries where the kernel has none, and is no
faster than 16 steps at a time.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch

_UNROLL = 16  # steps in one iteration of the loop

# In entries of an array: below the first it is transposed whole, else a block
# of rows at a time (rows are not cut where a mesh might split them).
_CPU_CACHE, _CPU_BLOCK = 2**20, 2**15
_CPU_FEWEST = 16


def scan(decay, x, init):
  """Returns y [N, T]; arguments as in reference.py."""
  dtype = jnp.promote_types(jnp.result_type(decay, x), jnp.float32)
  start = jnp.zeros_like(x[:, 0]) if init is None else init

  def step(later, column):
    decay, x = column
    y = x + product(decay, later)
    return y, y

  columns = decay.astype(dtype), x.astype(dtype)
  return _over_time(step, start.astype(dtype), columns, reverse=True)


def adjoint(decay, g):
  """Returns z [N, T], the gradient of sum(g y) in x; decay [N, T], g [N, T]."""
  dtype = jnp.promote_types(jnp.result_type(decay, g), jnp.float32)

  def step(earlier, column):
    decay, g = column
    z = g + earlier
    return product(decay, z), z

  columns = decay.astype(dtype), g.astype(dtype)
  return _over_time(step, jnp.zeros_like(columns[1][:, 0]), columns)


def product(decay, y):
  """decay y, and 0 where decay is 0, whatever y is."""
  return jnp.where(decay == 0, 0, decay * y)


def later(y, last):
  """[N, T] y_{t+1}, and `last` [N] (None: 0) behind the last token.

  Padding and a select fuse with what reads them; on TPU concatenation of the
  two makes an array.
  """
  moved = jax.lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), (-1, 1, 0)))
  if last is None:
    return moved
  is_last = jnp.arange(y.shape[1]) == y.shape[1] - 1
  return jnp.where(is_last[None], last.astype(y.dtype)[:, None], moved)


def _over_time(step, start, columns, reverse=False):
  def solve(start, columns, unroll):
    by_time = jax.tree.map(jnp.transpose, columns)
    _, out = jax.lax.scan(step, start, by_time, reverse=reverse, unroll=unroll)
    return out.T

  def cpu(start, columns):
    n, t = columns[0].shape
    rows = _cpu_rows(n, t)
    blocks = jax.tree.map(
      lambda a: a.reshape(n // rows, rows, *a.shape[1:]), (start, columns)
    )
    # One block is no loop: XLA removes it.
    return jax.lax.map(lambda b: solve(*b, 1), blocks).reshape(n, t)

  return jax.lax.platform_dependent(
    *(start, columns),
    cpu=cpu,
    default=functools.partial(solve, unroll=_UNROLL),
  )


def _cpu_rows(n, t):
  """Rows at a time: a divisor of n whose transposes stay in cache, or n."""
  if n * t <= _CPU_CACHE or not dispatch.on_one_device():
    return max(n, 1)
  most = max(_CPU_BLOCK // t, _CPU_FEWEST)
  rows = max(size for size in range(1, most + 1) if n % size == 0)
  return rows if rows >= _CPU_FEWEST else n
