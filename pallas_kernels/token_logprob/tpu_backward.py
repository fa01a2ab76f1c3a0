"""Pallas TPU gradients of token_logprob, from hidden, W, logsumexp, entropy.

With p = e^(z - logsumexp) and cotangents g1 (logprob), g2 (entropy), g3
(logsumexp) a tile of logits is computed again and gives

  dz = g1 onehot(y) + p (g3 - g1 - g2 (z - logsumexp + entropy))
  du = dz scale (1 - (c / softcap)^2);  dhidden = du W;  dW = du^T hidden

dhidden and dW are two kernels, four products in all, because each keeps its
own float32 accumulator in VMEM; xla.backward needs three products and a
float32 [N, D] in HBM. du is rounded to the dtype of `hidden` before its
product, the accumulators once at the end.

What lies beyond N and V in the last tiles is undefined memory. 0 * NaN is NaN
in a product, so what is contracted there is set to 0: W and du over the
vocabulary, hidden and du over the tokens.
"""

import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.token_logprob import tiles, tpu_forward, xla

_TARGET, _LOGSUMEXP, _FACTOR, _LOGPROB, _ENTROPY = range(5)


class _Used(NamedTuple):
  """Which cotangents there are."""

  logprob: bool
  entropy: bool


def backward(
  hidden,
  head,
  targets,
  scale,
  mask,
  entropy,
  logsumexp,
  g_logprob,
  g_entropy,
  g_logsumexp,
  *,
  spec,
  wanted,
  interpret=False,
):
  """Returns (dhidden or None, dW or None) in the dtypes of hidden and head.

  Args:
    hidden: [N, D]; zeros where the mask is false.
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] ids.
    scale: scalar, the inverse temperature.
    mask: [N] bool or None; skips token tiles where all are false.
    entropy: [N], or None if g_entropy is.
    logsumexp: [N].
    g_logprob: [N] cotangent, zeros where the mask is false; None if nothing
      depends on it, and likewise the next two.
    g_entropy: [N] or None.
    g_logsumexp: [N] or None.
    spec: xla.Spec.
    wanted: whether dhidden and dW are wanted.
    interpret: runs on any platform, slowly.

  Raises:
    blocks.Unsupported: see tiles.choose.
  """
  vocab = head.size // hidden.shape[1]
  factor = xla.common_factor(
    entropy, logsumexp, g_logprob, g_entropy, g_logsumexp
  )
  zero = jnp.zeros_like(logsumexp)
  rows = [
    tpu_forward.inside(targets, vocab),
    logsumexp,
    factor,
    zero if g_logprob is None else g_logprob,
    zero if g_entropy is None else g_entropy,
  ]
  used = _Used(logprob=g_logprob is not None, entropy=g_entropy is not None)
  return tuple(
    _gradient(
      *(name, hidden, head, scale, mask, rows),
      used=used,
      spec=spec,
      interpret=interpret,
    )
    if want
    else None
    for name, want in zip(("dx", "dw"), wanted, strict=True)
  )


def _gradient(name, hidden, head, scale, mask, rows, *, used, spec, interpret):
  """dhidden ("dx") or dW ("dw"): the outer grid axis is that of the result."""
  tile = tiles.choose(name, hidden, head, spec)
  tokens, width = hidden.shape
  vocab = head.size // width
  grid = pl.cdiv(tokens, tile.tokens), pl.cdiv(vocab, tile.vocab)
  if name == "dx":
    kernel, token, which = _dx_kernel, lambda i, *_: i, tpu_forward.frozen
    like, other = hidden, grid[0] * head.nbytes
  else:
    kernel, token, which = _dw_kernel, lambda j, i, *_: i, lambda j, *_: j
    like, other = head, grid[1] * hidden.nbytes
  x_block = pl.BlockSpec((tile.tokens, width), lambda *a: (token(*a), 0))
  w_block = tpu_forward.head_block(tile, hidden, spec, which)
  out_block = x_block if name == "dx" else w_block
  flags = tpu_forward.active(mask, tokens, tile.tokens)
  packed = tpu_forward.pack(rows, tile.tokens)
  return pl.pallas_call(
    functools.partial(
      kernel, tile=tile, shape=(tokens, vocab), spec=spec, used=used
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid if name == "dx" else grid[::-1],
      in_specs=[
        pl.BlockSpec((1, 8, tile.tokens), lambda *a: (token(*a), 0, 0)),
        x_block,
        w_block,
      ],
      out_specs=out_block,
      scratch_shapes=[
        pltpu.VMEM((tile.tokens, 8), jnp.float32),
        pltpu.VMEM(out_block.block_shape, jnp.float32),
      ],
    ),
    out_shape=dispatch.result(
      like.shape, like.dtype, hidden, head, packed, scale, flags
    ),
    compiler_params=tpu_forward.parameters(),
    cost_estimate=tpu_forward.cost(
      grid, tile, width, products=2, moved=2 * like.nbytes + other
    ),
    interpret=interpret,
    name=f"token_logprob_{name}",
  )(flags, scale.astype(jnp.float32)[None], packed, hidden, head)


def _dx_kernel(
  flags, scale, rows, x, w, out, column, total, *, tile, shape, spec, used
):
  i, j = pl.program_id(0), pl.program_id(1)

  @pl.when(j == 0)
  def _():
    column[...] = rows[0].T
    total[...] = jnp.zeros_like(total)

  @pl.when(flags[i] != 0)
  def _():
    axis = 0 if spec.head_layout == "vd" else 1
    _clear_overhang(w, axis, j, *divmod(shape[1], tile.vocab))
    du = _du(
      x[...],
      w[...],
      column[...],
      scale[0],
      j * tile.vocab,
      shape[1],
      spec,
      used,
    )
    total[...] += tpu_forward.dot(du, w[...].astype(du.dtype), 1, axis)

  @pl.when(j == pl.num_programs(1) - 1)
  def _():
    out[...] = total[...].astype(out.dtype)


def _dw_kernel(
  flags, scale, rows, x, w, out, column, total, *, tile, shape, spec, used
):
  j, i = pl.program_id(0), pl.program_id(1)

  @pl.when(i == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(flags[i] != 0)
  def _():
    column[...] = rows[0].T
    _clear_overhang(x, 0, i, *divmod(shape[0], tile.tokens))
    du = _du(
      x[...],
      w[...],
      column[...],
      scale[0],
      j * tile.vocab,
      shape[1],
      spec,
      used,
    )
    pair = (du, x[...]) if spec.head_layout == "vd" else (x[...], du)
    total[...] += tpu_forward.dot(*pair, 0, 0)

  @pl.when(i == pl.num_programs(1) - 1)
  def _():
    out[...] = total[...].astype(out.dtype)


def _du(x, w, column, scale, first, vocab, spec, used):
  """Gradient of the raw logits of a tile whose columns start at `first`."""
  z, slope = tpu_forward.logits(x, w, scale, spec)
  logp = z - _row(column, _LOGSUMEXP)
  dz = _row(column, _FACTOR)
  if used.entropy:
    dz = dz - _row(column, _ENTROPY) * logp
  dz = jnp.exp(logp) * dz
  index = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
  if used.logprob:
    hit = index == _row(column, _TARGET).astype(jnp.int32) - first
    dz = dz + jnp.where(hit, _row(column, _LOGPROB), 0.0)
  du = dz * slope
  if vocab % z.shape[1]:
    du = jnp.where(index < vocab - first, du, 0.0)
  return du.astype(x.dtype)


def _row(column, k):
  return column[:, k : k + 1]


def _clear_overhang(ref, axis, step, whole, ragged):
  """Zeros what a block holds beyond the array; only the last one does."""
  if ragged:

    @pl.when(step == whole)
    def _():
      index = jax.lax.broadcasted_iota(jnp.int32, ref.shape, axis)
      ref[...] = jnp.where(index < ragged, ref[...], jnp.zeros_like(ref))
