"""Pallas TPU forward of token_logprob: one pass over W, no logits in HBM.

For each token tile the vocabulary tiles are visited in order. A running
maximum m, sum l and centred moment a are kept PER LANE, so that a tile costs
no reduction across lanes; with a new maximum m' and k = e^(m - m')

  a <- k (a + (m - m') l) + sum e^(z-m') (z - m');  l <- k l + sum e^(z-m')

and the 128 lanes are merged by the same rule at the end:

  logsumexp = m + log l;  entropy = log l - a / l

The centred moment keeps float32's accuracy in the entropy. Per-token numbers
travel as the rows of one [N / bn, 8, bn] array: a [N, 1] array would be padded
to 128 lanes in HBM, and 1-D blocks want multiples of 1024.

A token tile in which no token counts does no work and moves no part of W: a
flag that is prefetched as a scalar freezes the index of its block.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import blocks, dispatch
from pallas_kernels.token_logprob import tiles

_LANES = blocks.LANES
# Not -inf: the difference of two starts must be finite, it multiplies l = 0.
_START = -1e30


def forward(hidden, head, targets, scale, mask, *, spec, interpret=False):
  """Returns (logprob, entropy or None, logsumexp), each [N] float32.

  Args:
    hidden: [N, D]; D a multiple of 128.
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] ids; an id outside [0, V) counts as logit 0.
    scale: scalar, the inverse temperature.
    mask: [N] bool or None. Token tiles where all are false give zeros.
    spec: xla.Spec.
    interpret: runs on any platform, slowly.

  Raises:
    blocks.Unsupported: see tiles.choose.
  """
  tile = tiles.choose("forward", hidden, head, spec)
  tokens, vocab = hidden.shape[0], head.size // hidden.shape[1]
  grid = pl.cdiv(tokens, tile.tokens), pl.cdiv(vocab, tile.vocab)
  flags = active(mask, tokens, tile.tokens)
  rows = pack([inside(targets, vocab)], tile.tokens)
  out = pl.pallas_call(
    functools.partial(_kernel, tile=tile, vocab=vocab, spec=spec),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid,
      in_specs=[
        pl.BlockSpec((1, 8, tile.tokens), lambda i, j, *_: (i, 0, 0)),
        pl.BlockSpec((tile.tokens, hidden.shape[1]), lambda i, j, *_: (i, 0)),
        head_block(tile, hidden, spec, frozen),
      ],
      out_specs=pl.BlockSpec((1, 8, tile.tokens), lambda i, j, *_: (i, 0, 0)),
      scratch_shapes=[
        pltpu.VMEM((tile.tokens, 8), jnp.float32),
        *[pltpu.VMEM((tile.tokens, _LANES), jnp.float32)] * 4,
      ],
    ),
    out_shape=dispatch.result(
      rows.shape, jnp.float32, hidden, head, rows, scale, flags
    ),
    compiler_params=parameters(),
    cost_estimate=cost(
      grid,
      tile,
      hidden.shape[1],
      products=1,
      moved=hidden.nbytes + grid[0] * head.nbytes,
    ),
    interpret=interpret,
    name="token_logprob_forward",
  )(flags, scale.astype(jnp.float32)[None], rows, hidden, head)
  logprob, entropy, logsumexp = (
    out[:, k].reshape(-1)[:tokens] for k in range(3)
  )
  return logprob, entropy if spec.with_entropy else None, logsumexp


def _kernel(flags, scale, rows, x, w, out, column, *running, tile, vocab, spec):
  i, j = pl.program_id(0), pl.program_id(1)
  counts = flags[i] != 0

  @pl.when(jnp.logical_not(counts) & (j == 0))
  def _():
    out[...] = jnp.zeros_like(out)

  @pl.when(counts & (j == 0))
  def _():
    column[...] = rows[0].T
    for ref, start in zip(running, (_START, 0.0, 0.0, 0.0), strict=True):
      ref[...] = jnp.full_like(ref, start)

  @pl.when(counts)
  def _():
    z, _ = logits(x[...], w[...], scale[0], spec)
    first = j * tile.vocab
    hit = column[:, :1].astype(jnp.int32) - first
    tail = vocab - first if vocab % tile.vocab else None
    _accumulate(z, hit, tail, running, spec)

  @pl.when(counts & (j == pl.num_programs(1) - 1))
  def _():
    out[0] = _merge(*(ref[...] for ref in running)).T[:8]


def _accumulate(z, hit, tail, running, spec):
  """Adds a tile of logits to the lanes' maximum, sum, moment and target."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (z.shape[0], _LANES), 1)
  starts = range(0, z.shape[1], _LANES)
  groups = [z[:, k : k + _LANES] for k in starts]
  if tail is not None:  # beyond V the block holds anything
    groups = [
      jnp.where(lane < tail - k, group, _START)
      for k, group in zip(starts, groups, strict=True)
    ]
  old, total, moment, chosen = (ref[...] for ref in running)
  top = functools.reduce(jnp.maximum, groups, old)
  shrink = jnp.exp(old - top)
  if spec.with_entropy:
    moment = shrink * (moment + (old - top) * total)
  total = shrink * total
  for k, group in zip(starts, groups, strict=True):
    shifted = group - top
    exp = jnp.exp(shifted)
    total = total + exp
    if spec.with_entropy:
      moment = moment + exp * shifted
    chosen = chosen + jnp.where(lane == hit - k, group, 0.0)
  for ref, value in zip(running, (top, total, moment, chosen), strict=True):
    ref[...] = value


def _merge(top, total, moment, chosen):
  """[bn, 128] whose first columns are logprob, entropy and logsumexp."""
  highest = jnp.max(top, axis=1, keepdims=True)
  shrink = jnp.exp(top - highest)
  moment = shrink * (moment + (top - highest) * total)
  moment = jnp.sum(moment, axis=1, keepdims=True)
  total = jnp.sum(shrink * total, axis=1, keepdims=True)
  logsumexp = highest + jnp.log(total)
  entropy = jnp.log(total) - moment / total
  logprob = jnp.sum(chosen, axis=1, keepdims=True) - logsumexp
  lane = jax.lax.broadcasted_iota(jnp.int32, top.shape, 1)
  rest = jnp.where(lane == 2, logsumexp, 0.0)
  return jnp.where(lane == 0, logprob, jnp.where(lane == 1, entropy, rest))


def logits(x, w, scale, spec):
  """Scaled logits [bn, bv] and their slope d z / d u."""
  u = dot(x, w.astype(x.dtype), 1, 1 if spec.head_layout == "vd" else 0)
  if spec.softcap is None:
    return u * scale, scale
  tanh = jnp.tanh(u * (1.0 / spec.softcap))
  return (spec.softcap * scale) * tanh, scale * (1.0 - tanh * tanh)


def dot(a, b, a_axis, b_axis):
  """Product in float32; float32 operands are not rounded to bfloat16."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision="highest" if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def inside(targets, vocab):
  """Ids outside [0, V) as -1: they must not match a column of the overhang."""
  return jnp.where((targets >= 0) & (targets < vocab), targets, -1)


def pack(rows, size):
  """[tiles, 8, size] float32 of [N] arrays; ids are exact up to 2^24."""
  count = rows[0].shape[0]
  stacked = jnp.stack([row.astype(jnp.float32) for row in rows])
  ragged = pl.cdiv(count, size) * size - count
  padded = jnp.pad(stacked, ((0, 8 - len(rows)), (0, ragged)))
  return padded.reshape(8, -1, size).swapaxes(0, 1)


def active(mask, tokens, size):
  """[tiles] int32: 1 where any token of a tile counts."""
  if mask is None:
    return jnp.ones(pl.cdiv(tokens, size), jnp.int32)
  padded = jnp.pad(mask, (0, pl.cdiv(tokens, size) * size - tokens))
  return padded.reshape(-1, size).any(axis=1).astype(jnp.int32)


def frozen(i, j, flags, scale):
  """The vocabulary tile that step (i, j) wants; 0 for a tile of no tokens."""
  del scale
  return jax.lax.select(flags[i] != 0, j, jnp.zeros_like(j))


def head_block(tile, hidden, spec, which):
  """BlockSpec of a vocabulary tile; which(*grid, *scalars) is its index."""
  width = hidden.shape[1]
  if spec.head_layout == "vd":
    return pl.BlockSpec((tile.vocab, width), lambda *a: (which(*a), 0))
  return pl.BlockSpec((width, tile.vocab), lambda *a: (0, which(*a)))


def parameters():
  """The first grid axis may be split over cores; VMEM is what the chip has."""
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary"),
    vmem_limit_bytes=dispatch.target().limit,
  )


def cost(grid, tile, width, *, products, moved):
  """CostEstimate of `products` products of every tile, `moved` bytes."""
  entries = grid[0] * tile.tokens * grid[1] * tile.vocab
  return pl.CostEstimate(
    flops=2 * products * entries * width,
    transcendentals=entries,
    bytes_accessed=moved,
  )
