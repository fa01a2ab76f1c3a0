"""The TPU kernel: row sums and d loss / d logprob in one pass of the inputs.

Tiles of [rows, tokens], the row tiles in parallel, the token tiles in order.
Sums are kept for each lane in VMEM and merged once a row, so a tile needs no
reduction across lanes. What is one number a row (the advantage, the sums)
travels as [tiles, 8, rows], compact in HBM, and is transposed once a row tile:
[N, 1] would be stored as [N, 128].

The last tile's overhang is undefined memory: columns from T on are masked,
rows from N on are never read back.
"""

import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import blocks, dispatch
from pallas_kernels.policy_loss import token_terms

_OP = "policy_loss"
_ROWS = 32  # of a step in a tile: what an int8 tile holds
_TILES = ((256, 1024), (256, 512), (128, 512), (64, 256), (32, 128))
_SUMS = len(token_terms.Terms._fields)  # 8, the sublanes of a float32 tile
_DTYPES = (jnp.float32, jnp.bfloat16)


class _Layout(NamedTuple):
  """What a kernel is built for.

  Attributes:
    tile: (rows, tokens) of a tile.
    tokens: T.
    with_ref: whether there is a reference.
    per_token: whether advantages are [N, T].
    with_slope: whether d loss / d logprob is written.
    spec: token_terms.Spec.
  """

  tile: tuple[int, int]
  tokens: int
  with_ref: bool
  per_token: bool
  with_slope: bool
  spec: token_terms.Spec


def sums(logprob, old, ref, advantages, mask, beta, *, spec, interpret):
  """Returns token_terms.Terms of [N] sums; arguments as in xla.sums.

  Raises:
    blocks.Unsupported: for dtypes other than float32 and bfloat16, and for
      empty arrays.
  """
  _check(logprob, old, ref, advantages)
  # A bool would become four bytes a token on its way into the kernel.
  if mask.dtype not in (jnp.int8, *_DTYPES):
    mask = (mask != 0).astype(jnp.int8)
  return _sums(logprob, old, ref, advantages, mask, beta, spec, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _sums(logprob, old, ref, advantages, mask, beta, spec, interpret):
  arrays = logprob, old, ref, advantages, mask, beta
  return _call(*arrays, spec, interpret, with_slope=False)[0]


def _forward(*args):
  return _call(*args, with_slope=True)


def _backward(spec, interpret, slope, cotangents):
  d_logprob = cotangents.loss[:, None] * slope.astype(jnp.float32)
  return d_logprob.astype(slope.dtype), None, None, None, None, None


_sums.defvjp(_forward, _backward)


def _check(logprob, old, ref, advantages):
  for x in (logprob, old, ref, advantages):
    if x is not None and x.dtype not in _DTYPES:
      raise blocks.Unsupported(
        f"{_OP}: the kernel takes float32 and bfloat16, got {x.dtype}; use"
        " impl='xla'."
      )
  if not logprob.size:
    raise blocks.Unsupported(
      f"{_OP}: the kernel takes no empty arrays, got {logprob.shape}; use"
      " impl='xla'."
    )


def _call(*inputs, with_slope):
  """(Terms, slope or None) of the arguments of _sums."""
  *arrays, spec, interpret = inputs
  logprob, _, ref, advantages, mask, _ = arrays
  per_token = advantages.ndim == 2
  chip = dispatch.target()
  tile = _tile([x for x in arrays[:5] if x is not None], chip, with_slope)
  count, tokens = logprob.shape
  grid = pl.cdiv(count, tile[0]), pl.cdiv(tokens, tile[1])
  layout = _Layout(tile, tokens, ref is not None, per_token, with_slope, spec)
  block = pl.BlockSpec(tile, lambda i, j: (i, j))
  row = pl.BlockSpec((1, _SUMS, tile[0]), lambda i, j: (i, 0, 0))
  operands = _operands(*arrays, rows=tile[0])
  wide = [block] * (len(operands) - 2)
  packed = grid[0], _SUMS, tile[0]
  results = [dispatch.result(packed, jnp.float32, *operands)]
  if with_slope:
    results.append(dispatch.result(logprob.shape, logprob.dtype, *operands))
  sums, *slope = pl.pallas_call(
    functools.partial(_kernel, layout=layout),
    grid=grid,
    in_specs=[
      *wide,
      block if per_token else row,
      pl.BlockSpec(memory_space=pltpu.SMEM),
    ],
    out_specs=[row, block][: len(results)],
    out_shape=results,
    scratch_shapes=[
      pltpu.VMEM((_SUMS, tile[0], blocks.LANES), jnp.float32),
      pltpu.VMEM((tile[0], blocks.LANES), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=chip.limit,
    ),
    cost_estimate=_cost(operands + results, logprob.size, ref is not None),
    name=_OP,
    interpret=interpret,
  )(*operands)
  sums = jnp.moveaxis(sums, 1, 0).reshape(_SUMS, -1)[:, :count]
  return token_terms.Terms(*sums), slope[0] if with_slope else None


def _operands(logprob, old, ref, advantages, mask, beta, *, rows):
  """In the order of the kernel's refs."""
  wide = [x for x in (logprob, old, ref, mask) if x is not None]
  if advantages.ndim == 1:
    advantages = _packed(advantages, rows)
  return [*wide, advantages, beta.astype(jnp.float32).reshape(1, 1)]


def _kernel(*refs, layout):
  """Adds one tile to its rows' sums and writes its slopes."""
  refs = list(refs)
  logprob, old = refs.pop(0), refs.pop(0)
  ref = refs.pop(0) if layout.with_ref else None
  mask, advantages, beta, out = (refs.pop(0) for _ in range(4))
  slope = refs.pop(0) if layout.with_slope else None
  totals, credit = refs
  rows, columns = layout.tile
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _start():
    totals[...] = jnp.zeros_like(totals)
    if not layout.per_token:
      column = advantages[0].T[:, :1]
      credit[...] = jnp.broadcast_to(column, credit.shape)

  def piece(index, column, sums):
    at = _aligned(index, _ROWS), _aligned(column, blocks.LANES)
    terms, slopes = token_terms.token_terms(
      *(_float(x[at]) for x in (logprob, old)),
      None if ref is None else _float(ref[at]),
      _float(advantages[at]) if layout.per_token else credit[at[0], :],
      _counts(mask[at], layout.tokens - step * columns - column * blocks.LANES),
      beta[0, 0],
      layout.spec,
      expm1=_expm1,
    )
    if slope is not None:
      slope[at] = slopes.astype(slope.dtype)
    return tuple(x + y for x, y in zip(sums, terms, strict=True))

  def some_rows(index, carry):
    here = _aligned(index, _ROWS)
    sums = tuple(totals[i, here, :] for i in range(_SUMS))
    sums = jax.lax.fori_loop(
      0, columns // blocks.LANES, functools.partial(piece, index), sums
    )
    for i, x in enumerate(sums):
      totals[i, here, :] = x
    return carry

  jax.lax.fori_loop(0, rows // _ROWS, some_rows, 0)

  @pl.when(step == pl.num_programs(1) - 1)
  def _finish():
    out[0] = _merged(totals, rows)


def _merged(totals, rows):
  """[8, rows] sums of the [8, rows, 128] sums by lane."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (rows, blocks.LANES), 1)
  columns = jnp.zeros((rows, blocks.LANES), jnp.float32)
  for i in range(_SUMS):
    merged = totals[i].sum(axis=1, keepdims=True)
    columns = jnp.where(lane == i, merged, columns)
  return columns.T[:_SUMS]


def _aligned(index, size):
  return pl.ds(pl.multiple_of(index * size, size), size)


def _float(x):
  return x.astype(jnp.float32)


def _counts(mask, left):
  """Which tokens count, of a piece with `left` columns before T."""
  wide = jnp.int32 if mask.dtype == jnp.int8 else jnp.float32
  lane = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1)
  return (mask.astype(wide) != 0) & (lane < left)


def _expm1(x):
  """e^x - 1, a polynomial near 0; Mosaic has no expm1."""
  near = jnp.clip(x, -0.5, 0.5)
  series = jnp.ones_like(x)
  for order in range(9, 1, -1):
    series = 1.0 + near * series * (1.0 / order)
  return jnp.where(jnp.abs(x) < 0.5, near * series, jnp.exp(x) - 1.0)


def _packed(advantages, rows):
  """[N] as [tiles, 8, rows] float32, the same in all 8 sublanes."""
  padded = -(-advantages.size // rows) * rows
  known = jnp.pad(_float(advantages), (0, padded - advantages.size))
  return jnp.broadcast_to(known.reshape(-1, 1, rows), (padded // rows, 8, rows))


def _tile(arrays, chip, with_slope):
  """The largest tile that fits, no larger than the arrays need.

  Args:
    arrays: logprob first, then those of [N, T] and [N].
    chip: to fit on.
    with_slope: whether there is an output like the first.
  """
  count, tokens = arrays[0].shape
  itemsize = sum(x.dtype.itemsize for x in arrays)
  itemsize += arrays[0].dtype.itemsize if with_slope else 0

  def vmem_bytes(tile):
    rows, columns = tile
    twice = 2 * rows * columns * itemsize + 4 * _SUMS * rows * 4
    return twice + (_SUMS + 2) * rows * blocks.LANES * 4

  up = lambda x, to: -(-x // to) * to  # noqa: E731
  tiles = [
    (min(rows, up(count, _ROWS)), min(columns, up(tokens, blocks.LANES)))
    for rows, columns in _TILES
  ]
  return blocks.first_that_fits(_OP, tiles, vmem_bytes, chip)


def _cost(arrays, tokens, with_ref):
  return pl.CostEstimate(
    flops=(60 if with_ref else 40) * tokens,
    transcendentals=(4 if with_ref else 2) * tokens,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
  )
