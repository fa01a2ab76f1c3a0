"""The recurrence and its adjoint as one Pallas TPU kernel.

A grid of row tiles and, inside, time tiles: visited last to first by the
recurrence, first to last by its adjoint. What goes from one to the next is in
VMEM, so each array is read or written once and there are no temporaries.

The 128 lanes of a group are 128 tokens. A group is solved by doubling: after
the step of width d, y is right but for what comes from d or more tokens away,
and a is the product of the d decays up to there.

  y_t <- y_t + a_t y_{t+d};  a_t <- a_t a_{t+d};  d = 1, 2, 4, ... 64

Seven rotations of y and of a instead of 127 steps. Sums are so added in
another order than a loop adds them, and a product of up to 128 decays must be
finite (it is if |decay| <= 1); one that underflows to 0 counts as 0.

The adjoint needs the decay of the token before. It gets there without a
shifted copy of the array: h_t = decay_t z_t = decay_t g_t + decay_t h_{t-1} is
the same recurrence forwards, and z_t = g_t + h_{t-1}.

What overhangs the last tile is undefined memory. Over rows it stays in its
rows and is not written. Over time it comes before the first real token of the
recurrence, which replaces it by decay 1 and x 0 (neutral: init passes through)
and, for the adjoint, after the last one.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import blocks, dispatch
from pallas_kernels.reverse_scan import xla

_NAME = "reverse_scan"
_TILES = ((256, 512), (256, 256), (128, 256), (64, 128), (16, 128))
_WORKING = 12  # copies of a group that a step of doubling has in hand
_DTYPES = (jnp.float32, jnp.bfloat16)


def scan(decay, x, init, *, interpret=False, tile=None):
  """Returns y [N, T] float32; see reference.py.

  Args:
    decay: [N, T] float32 or bfloat16.
    x: [N, T] float32 or bfloat16.
    init: [N], or None for 0.
    interpret: runs on any platform, slowly.
    tile: (rows, tokens), multiples of 16 and of 128; None picks by VMEM.

  Raises:
    blocks.Unsupported: for other dtypes, empty arrays, a tile that VMEM does
      not hold.
  """
  return _call(decay, x, init, False, interpret, tile)


def adjoint(decay, g, *, interpret=False, tile=None):
  """Returns z [N, T] float32; see xla.py. Arguments as those of scan."""
  return _call(decay, g, None, True, interpret, tile)


def vmem_bytes(tile, decay_dtype, x_dtype):
  """VMEM of one program: two buffers an array, the carry, what is in hand."""
  rows, tokens = tile
  itemsizes = jnp.dtype(decay_dtype).itemsize, jnp.dtype(x_dtype).itemsize, 4
  group = rows * blocks.LANES * 4
  return 2 * sum(itemsizes) * rows * tokens + (1 + _WORKING) * group


def _call(decay, x, init, adjoint, interpret, tile):
  n, t = x.shape
  rows, tokens = _tile(decay, x, tile)
  tiles = pl.cdiv(n, rows), pl.cdiv(t, tokens)
  kernel = functools.partial(_kernel, adjoint=adjoint, length=t)

  def place(i, j):
    return i, (j if adjoint else tiles[1] - 1 - j)

  block = pl.BlockSpec((rows, tokens), place)
  operands, specs = [decay, x], [block, block]
  if init is not None:
    packed = _packed(init.astype(jnp.float32), tiles[0], rows)
    operands.append(packed)
    specs.append(
      pl.BlockSpec((1, *packed.shape[1:]), lambda i, j: (i, i * 0, i * 0))
    )
  return pl.pallas_call(
    kernel,
    grid=tiles,
    in_specs=specs,
    out_specs=block,
    out_shape=dispatch.result((n, t), jnp.float32, *operands),
    scratch_shapes=[pltpu.VMEM((rows, blocks.LANES), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=dispatch.target().limit,
    ),
    cost_estimate=pl.CostEstimate(
      flops=30 * n * t,
      transcendentals=0,
      bytes_accessed=n * t * (decay.dtype.itemsize + x.dtype.itemsize + 4),
    ),
    interpret=interpret,
    name=_NAME + "_adjoint" * adjoint,
  )(*operands)


def _kernel(decay_ref, x_ref, *refs, adjoint, length):
  *init_ref, y_ref, carry_ref = refs
  rows, tokens = x_ref.shape
  lane = jax.lax.broadcasted_iota(jnp.int32, (rows, blocks.LANES), 1)
  step = pl.program_id(1)
  first = (pl.num_programs(1) - 1 - step) * tokens

  @pl.when(step == 0)
  def _():
    carry_ref[...] = jnp.zeros_like(carry_ref)
    if init_ref:
      carry_ref[...] = _column(init_ref[0][0], carry_ref.shape)

  groups = tokens // blocks.LANES

  def body(k, carry):
    start = (k if adjoint else groups - 1 - k) * blocks.LANES
    at = pl.ds(pl.multiple_of(start, blocks.LANES), blocks.LANES)
    a = decay_ref[:, at].astype(jnp.float32)
    x = x_ref[:, at].astype(jnp.float32)
    if not adjoint and length % tokens:
      real = first + start + lane < length
      a, x = jnp.where(real, a, 1.0), jnp.where(real, x, 0.0)
    y_ref[:, at], end = _group(a, x, carry, lane, adjoint)
    return jnp.broadcast_to(end, carry.shape)

  carry_ref[...] = jax.lax.fori_loop(0, groups, body, carry_ref[...])


def _group(a, x, carry, lane, adjoint):
  """128 tokens: the result, and the [rows, 1] that the next group needs."""
  if not adjoint:
    a, y = _doubled(a, x, lane, forwards=False)
    y = y + xla.product(a, carry)
    return y, y[:, :1]
  a, h = _doubled(a, xla.product(a, x), lane, forwards=True)
  h = h + xla.product(a, carry)
  z = x + jnp.where(lane == 0, carry, pltpu.roll(h, 1, 1))
  return z, h[:, -1:]


def _doubled(a, y, lane, *, forwards):
  """The module's doubling; a ends as the product up to the group's end."""
  for width in (1, 2, 4, 8, 16, 32, 64):
    shift = width if forwards else blocks.LANES - width
    inside = lane >= width if forwards else lane < blocks.LANES - width
    moved, decays = pltpu.roll(y, shift, 1), pltpu.roll(a, shift, 1)
    y = y + jnp.where(inside & (a != 0), a * moved, 0.0)
    a = a * jnp.where(inside, decays, 1.0)
  return a, y


def _column(row, shape):
  """A [1, W] row as a [rows, 128] column, the same in all lanes; exact."""
  wide = (shape[0], row.shape[1])
  diagonal = jax.lax.broadcasted_iota(jnp.int32, wide, 0)
  diagonal = diagonal == jax.lax.broadcasted_iota(jnp.int32, wide, 1)
  column = jnp.where(diagonal, jnp.broadcast_to(row, wide), 0.0)
  return jnp.broadcast_to(column.sum(axis=1, keepdims=True), shape)


def _packed(init, tiles, rows):
  """[N] as [tiles, 1, W]: no [N, 1] array, which HBM pads to 128 lanes."""
  init = jnp.pad(init, (0, tiles * rows - init.shape[0])).reshape(tiles, rows)
  width = pl.cdiv(rows, blocks.LANES) * blocks.LANES
  return jnp.pad(init, ((0, 0), (0, width - rows)))[:, None]


def _tile(decay, x, tile):
  dtypes = decay.dtype, x.dtype
  if any(dtype not in _DTYPES for dtype in dtypes):
    raise blocks.Unsupported(
      f"{_NAME}: the kernel takes float32 and bfloat16, got"
      f" {[str(dtype) for dtype in dtypes]}; use impl='xla'."
    )
  if not x.size:
    raise blocks.Unsupported(
      f"{_NAME}: the kernel takes no empty array, got {x.shape}; use"
      " impl='xla'."
    )
  bytes_of = functools.partial(
    vmem_bytes, decay_dtype=decay.dtype, x_dtype=x.dtype
  )
  chip = dispatch.target()
  if tile is not None:
    _check_tile(tile)
    blocks.check_fits(_NAME, tile, bytes_of(tile), chip)
    return tile
  most = _up(x.shape[0], 16), _up(x.shape[1], blocks.LANES)
  tiles = [(min(r, most[0]), min(t, most[1])) for r, t in _TILES]
  return blocks.first_that_fits(_NAME, tiles, bytes_of, chip)


def _check_tile(tile):
  if len(tile) != 2 or tile[0] % 16 or tile[1] % blocks.LANES or not all(tile):
    raise blocks.Unsupported(
      f"{_NAME}: a tile is (rows, tokens), multiples of 16 and"
      f" {blocks.LANES}, got {tile}."
    )


def _up(size, multiple):
  return pl.cdiv(size, multiple) * multiple
