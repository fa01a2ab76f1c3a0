"""Softmax attention over keys that lie in several places, with its own vjp.

A row's keys come in parts: its prompt's, which it shares with its group, and
its own. Every part keeps its own scores; only the row maxima, sums and outputs
are joined, so no part is copied to where another lies. The backward pass
recomputes the weights from the row's logsumexp, so what is kept from the
forward pass is linear in the length.

    s = cap(scale q k);  p = exp(s - lse);  out = p v,  summed over parts
    dp = g v;  ds = p (dp - sum g out) scale cap';  dq = ds k;  dk = ds q
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30


class Part(NamedTuple):
  """Keys and values that rows attend to.

  Attributes:
    k, v: [B, K, S, d]; B divides the rows N: N / B neighbours share them.
    allowed: bool, broadcasts to [B, K, N / B * Q, S], where the rows' queries
      stand side by side.
  """

  k: Float[Array, "B K S d"]
  v: Float[Array, "B K S d"]
  allowed: Bool[Array, "..."]


def attend(
  q: Float[Array, "N K Q d"],
  parts: Sequence[Part],
  *,
  scale: float,
  softcap: float | None = None,
) -> Float[Array, "N K Q d"]:
  """Attends to all parts at once.

  Args:
    q: queries by key head; Q counts queries and the heads that share keys.
    parts: at least one; in every row some key of some part should be allowed
      (a row without gives finite numbers that mean nothing).
    scale: multiplies q k.
    softcap: cap * tanh(score / cap), or None.

  Returns:
    Float32; scores and softmax are float32, factors of products keep the
    dtype of k and v.

  References:
    Dao et al. 2022, arXiv:2205.14135 (the backward pass); Juravsky et al.
    2024, arXiv:2402.05099 (one prompt shared by many rows).
  """
  chex.assert_rank(q, 4)
  keys = tuple((part.k, part.v) for part in parts)
  allowed = tuple(part.allowed for part in parts)
  return _attend(q, keys, allowed, scale, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q, keys, allowed, scale, softcap):
  return _forward(q, keys, allowed, scale, softcap)[0]


def _forward(q, keys, allowed, scale, softcap):
  scores = [
    _scores(_fold(q, k), k, ok, scale, softcap)
    for (k, _), ok in zip(keys, allowed, strict=True)
  ]
  largest = functools.reduce(
    jnp.maximum, [_unfold(s.max(axis=-1), q) for s in scores]
  )
  total, out = 0.0, 0.0
  for s, (_, v) in zip(scores, keys, strict=True):
    weights = jnp.exp(s - _fold(largest, v)[..., None])
    total += _unfold(weights.sum(axis=-1), q)
    out += _unfold(_dot("bkqs,bksd->bkqd", weights.astype(v.dtype), v), q)
  out = out / total[..., None]
  return out, (q, keys, allowed, out, largest + jnp.log(total))


def _backward(scale, softcap, residuals, g):
  q, keys, allowed, out, lse = residuals
  delta = (g * out).sum(axis=-1)
  dq, grads = 0.0, []
  for (k, v), ok in zip(keys, allowed, strict=True):
    rows, rows_g = _fold(q, k), _fold(g, k).astype(v.dtype)
    s = _scores(rows, k, ok, scale, softcap)
    p = jnp.exp(s - _fold(lse, k)[..., None])
    dv = _dot("bkqs,bkqd->bksd", p.astype(v.dtype), rows_g)
    dp = _dot("bkqd,bksd->bkqs", rows_g, v)
    ds = p * (dp - _fold(delta, k)[..., None]) * scale
    if softcap:
      ds = jnp.where(ok, ds * (1.0 - (s / softcap) ** 2), 0.0)
    ds = ds.astype(k.dtype)
    dq += _unfold(_dot("bkqs,bksd->bkqd", ds, k), q)
    dk = _dot("bkqs,bkqd->bksd", ds, rows)
    grads.append((dk.astype(k.dtype), dv.astype(v.dtype)))
  return dq.astype(q.dtype), tuple(grads), (None,) * len(allowed)


_attend.defvjp(_forward, _backward)


def _scores(q, k, allowed, scale, softcap):
  s = _dot("bkqd,bksd->bkqs", q, k) * scale
  if softcap:
    s = softcap * jnp.tanh(s / softcap)
  return jnp.where(allowed, s, _MASKED)


def _dot(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


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
