"""Attention over parts that are read where they lie, with its own vjp.

Every part keeps its own scores; only the row maxima, sums and outputs are
joined, so no part is copied to where another lies. The backward pass
recomputes the weights from the row's logsumexp, so what is kept from the
forward pass is linear in the length. With cotangents g (out), h (logsumexp):

    s = cap(scale q k);  p = exp(s - logsumexp);  out = p v,  over all parts
    dp = g v;  ds = p (dp - sum g out + h) scale cap';  dq = ds k;  dk = ds q
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The score of a hidden key and the logsumexp of no key. Not -inf: the
# difference of two of them must be a number.
MASKED = -1e30


class Spec(NamedTuple):
  """What is known when tracing.

  Attributes:
    scale: multiplies q k.
    softcap: cap of the scores, or None.
    layouts: (k_layout, v_layout) of each part.
    with_logsumexp: whether logsumexp is wanted (None comes back if not) and
      rows without a key are told apart.
  """

  scale: float
  softcap: float | None
  layouts: tuple[tuple[str, str], ...]
  with_logsumexp: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(q, keys, allowed, spec):
  """Returns (out, logsumexp); arguments as in reference.py."""
  return _forward(q, keys, allowed, spec)[0]


def _forward(q, keys, allowed, spec):
  parts = list(zip(keys, allowed, spec.layouts, strict=True))
  scores = [
    _scores(_fold(q, k), k, ok, layouts[0], spec)
    for (k, _), ok, layouts in parts
  ]
  largest = functools.reduce(
    jnp.maximum, [_unfold(s.max(axis=-1), q) for s in scores]
  )
  total, out = 0.0, 0.0
  for s, ((_, v), _, (_, layout)) in zip(scores, parts, strict=True):
    weights = jnp.exp(s - _fold(largest, v)[..., None])
    total += _unfold(weights.sum(axis=-1), q)
    product = _dot(f"bkqs,b{layout}->bkqd", weights.astype(v.dtype), v, s.dtype)
    out += _unfold(product, q)
  logsumexp = largest + jnp.log(total)
  if not spec.with_logsumexp:
    out = out / total[..., None]
    return (out, None), (q, keys, allowed, out, logsumexp)
  none = largest <= MASKED
  out = out / jnp.where(none, jnp.inf, total)[..., None]
  logsumexp = jnp.where(none, MASKED, logsumexp)
  return (out, logsumexp), (q, keys, allowed, out, logsumexp)


def _backward(spec, residuals, cotangents):
  q, keys, allowed, out, logsumexp = residuals
  g, h = cotangents
  delta = (g * out).sum(axis=-1)
  if spec.with_logsumexp:
    delta -= h
    # Without a key every p is exp(MASKED - 0) = 0.
    logsumexp = jnp.where(logsumexp <= MASKED, 0.0, logsumexp)
  dq, grads = 0.0, []
  parts = zip(keys, allowed, spec.layouts, strict=True)
  for (k, v), ok, (k_layout, v_layout) in parts:
    rows, rows_g = _fold(q, k), _fold(g, k).astype(v.dtype)
    s = _scores(rows, k, ok, k_layout, spec)
    dot = functools.partial(_dot, dtype=s.dtype)
    p = jnp.exp(s - _fold(logsumexp, k)[..., None])
    dv = dot(f"bkqs,bkqd->b{v_layout}", p.astype(v.dtype), rows_g)
    dp = dot(f"bkqd,b{v_layout}->bkqs", rows_g, v)
    ds = p * (dp - _fold(delta, k)[..., None]) * spec.scale
    if spec.softcap is not None:
      ds = jnp.where(ok, ds * (1.0 - (s / spec.softcap) ** 2), 0.0)
    ds = ds.astype(k.dtype)
    dq += _unfold(dot(f"bkqs,b{k_layout}->bkqd", ds, k), q)
    dk = dot(f"bkqs,bkqd->b{k_layout}", ds, rows)
    grads.append((dk.astype(k.dtype), dv.astype(v.dtype)))
  return dq.astype(q.dtype), tuple(grads), (None,) * len(allowed)


attend.defvjp(_forward, _backward)


def _scores(q, k, allowed, layout, spec):
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  s = _dot(f"bkqd,b{layout}->bkqs", q, k, dtype) * spec.scale
  if spec.softcap is not None:
    s = spec.softcap * jnp.tanh(s / spec.softcap)
  return jnp.where(allowed, s, MASKED)


def _dot(spec, a, b, dtype):
  """Batched product accumulated in `dtype`."""
  whole = jnp.promote_types(a.dtype, b.dtype) == dtype
  return jnp.einsum(
    *(spec, a, b),
    precision="highest" if whole else None,
    preferred_element_type=dtype,
  )


def _fold(x, keys):
  """[N, K, Q, ...] -> [B, K, N / B * Q, ...], as the keys' rows."""
  rows, heads = keys.shape[0], x.shape[1]
  if rows == x.shape[0]:
    return x
  x = x.reshape(rows, x.shape[0] // rows, *x.shape[1:]).swapaxes(1, 2)
  return x.reshape(rows, heads, -1, *x.shape[4:])


def _unfold(x, q):
  """[B, K, N / B * Q, ...] -> [N, K, Q, ...]: the inverse of _fold."""
  count, heads, queries = q.shape[:3]
  if x.shape[0] == count:
    return x
  group = count // x.shape[0]
  x = x.reshape(x.shape[0], heads, group, queries, *x.shape[3:])
  return x.swapaxes(1, 2).reshape(count, heads, queries, *x.shape[4:])
