"""Attention block by block, with an online softmax and its own vjp.

One loop over the pairs of blocks that the pattern allows, in the forward pass
and in the backward pass: no array has two axes of the row's length. The
backward pass recomputes the weights from the row's logsumexp. With the
cotangent g of out:

    s = cap(scale q k);  p = exp(s - logsumexp);  out = p v
    dp = g v;  ds = p (dp - sum g out) scale cap';  dq = ds k;  dk = ds q

Every token sees itself, so no row is without a key; padding is a segment too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash_attention import pattern as patterns

# The score of a hidden key. Not -inf: the difference of two must be a number.
_MASKED = -1e30
_SCORES = 2**24  # entries of one block of scores, at most if a block is larger
_BLOCKS = (512, 256, 128)


class Spec(NamedTuple):
  """What is known when tracing.

  Attributes:
    scale: multiplies q k.
    softcap: cap of the scores, or None.
    pattern: who sees whom by place.
    block: tokens of a block; None picks.
  """

  scale: float
  softcap: float | None
  pattern: patterns.Pattern
  block: int | None = None


def attend(q, k, v, segments, spec):
  """Returns out [R, L, H, d] in the dtype of q; see reference.py."""
  length = q.shape[1]
  block = spec.block or _block(q)
  padding = -length % block

  def cut(x, heads=None):
    """[R, L, H, d] -> [n, R, K, H / K, block, d]; [R, L] -> [n, R, block]."""
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
    if heads is None:
      return x.swapaxes(0, 1)
    x = x.reshape(*x.shape[:3], heads, -1, x.shape[4])
    return x.transpose(1, 0, 3, 4, 2, 5)

  heads = k.shape[2]
  if segments is not None:
    segments = cut(segments)
  keys, values = (cut(x, heads)[:, :, :, 0] for x in (k, v))
  out = _attend(cut(q, heads), keys, values, segments, spec)
  out = out.transpose(1, 0, 4, 2, 3, 5).reshape(q.shape[0], -1, *q.shape[2:])
  return out[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segments, spec):
  """[n, R, K, h, b, d] and [n, R, K, b, d] twice, [n, R, b] -> like q."""
  return _forward(q, k, v, segments, spec)[0]


def _forward(q, k, v, segments, spec):
  dtype = jnp.promote_types(q.dtype, jnp.float32)

  def step(carry, pair):
    i, j = pair[:2]
    largest, total, out = (_at(x, i) for x in carry)
    s, ok = _scores(q, k, segments, pair, spec)
    higher = jnp.maximum(largest, s.max(axis=-1))
    weights = jnp.where(ok, jnp.exp(s - higher[..., None]), 0)
    faded = jnp.exp(largest - higher)
    total = faded * total + weights.sum(axis=-1)
    product = _dot(
      "rkhqs,rksd->rkhqd", weights.astype(v.dtype), _at(v, j), dtype
    )
    out = faded[..., None] * out + product
    return _put(carry, (higher, total, out), i), None

  rows = q.shape[:-1]
  carry = (
    jnp.full(rows, _MASKED, dtype),
    jnp.zeros(rows, dtype),
    jnp.zeros(q.shape, dtype),
  )
  carry, _ = jax.lax.scan(step, carry, _pairs(q, spec))
  largest, total, out = carry
  out = (out / total[..., None]).astype(q.dtype)
  return out, (q, k, v, segments, out, largest + jnp.log(total))


def _backward(spec, residuals, g):
  q, k, v, segments, out, logsumexp = residuals
  dtype = logsumexp.dtype
  delta = (g.astype(dtype) * out.astype(dtype)).sum(axis=-1)
  dot = functools.partial(_dot, dtype=dtype)

  def step(carry, pair):
    i, j = pair[:2]
    dq, dk, dv = carry
    rows, rows_g = _at(q, i), _at(g, i).astype(v.dtype)
    s, ok = _scores(q, k, segments, pair, spec)
    p = jnp.where(ok, jnp.exp(s - _at(logsumexp, i)[..., None]), 0)
    dv = _add(dv, dot("rkhqs,rkhqd->rksd", p.astype(v.dtype), rows_g), j)
    dp = dot("rkhqd,rksd->rkhqs", rows_g, _at(v, j))
    ds = p * (dp - _at(delta, i)[..., None]) * spec.scale
    if spec.softcap is not None:
      ds = ds * (1.0 - (s / spec.softcap) ** 2)
    ds = jnp.where(ok, ds, 0).astype(k.dtype)
    dq = _add(dq, dot("rkhqs,rksd->rkhqd", ds, _at(k, j)), i)
    dk = _add(dk, dot("rkhqs,rkhqd->rksd", ds, rows), j)
    return (dq, dk, dv), None

  carry = tuple(jnp.zeros(x.shape, dtype) for x in (q, k, v))
  carry, _ = jax.lax.scan(step, carry, _pairs(q, spec))
  grads = (d.astype(x.dtype) for d, x in zip(carry, (q, k, v), strict=True))
  return *grads, None


_attend.defvjp(_forward, _backward)


def _pairs(q, spec):
  """For the loop: blocks i and j, places and shifts of i, indices of j."""
  blocks, block = q.shape[0], q.shape[4]
  length = blocks * block
  i, j = spec.pattern.pairs(length, block)
  place, shift, index = (
    x.reshape(blocks, block)
    for x in (
      spec.pattern.places(length),
      spec.pattern.shifts(length),
      np.arange(length, dtype=np.int32),
    )
  )
  return i.astype(np.int32), j.astype(np.int32), place[i], shift[i], index[j]


def _scores(q, k, segments, pair, spec):
  """Of one pair of blocks, [R, K, h, b, b], and which are allowed."""
  i, j, place, shift, index = pair
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  s = _dot("rkhqd,rksd->rkhqs", _at(q, i), _at(k, j), dtype) * spec.scale
  if spec.softcap is not None:
    s = spec.softcap * jnp.tanh(s / spec.softcap)
  ok = spec.pattern.allows(place[:, None], shift[:, None], index[None])[None]
  if segments is not None:
    ok = ok & (_at(segments, i)[:, :, None] == _at(segments, j)[:, None])
  ok = ok[:, None, None]
  return jnp.where(ok, s, _MASKED), ok


def _dot(spec, a, b, dtype):
  """Batched product accumulated in `dtype`."""
  whole = jnp.promote_types(a.dtype, b.dtype) == dtype
  return jnp.einsum(
    *(spec, a, b),
    precision="highest" if whole else None,
    preferred_element_type=dtype,
  )


def _at(x, i):
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(tree, parts, i):
  return jax.tree.map(
    lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, i, 0),
    tree,
    parts,
  )


def _add(x, part, i):
  return _put(x, _at(x, i) + part, i)


def _block(q):
  """The largest block whose scores are few, and not much beyond the row."""
  rows, length, heads, _ = q.shape
  fits = [b for b in _BLOCKS if rows * heads * b * b <= _SCORES]
  block = max(fits, default=_BLOCKS[-1])
  return min(block, max(_BLOCKS[-1], 1 << (length - 1).bit_length()))
