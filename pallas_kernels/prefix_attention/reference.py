"""The truth: one key list a row, one softmax, plain autodiff."""

import jax
import jax.numpy as jnp

from pallas_kernels.prefix_attention import xla


def attend(q, keys, allowed, spec):
  """Returns (out [N, K, Q, d], logsumexp [N, K, Q]).

  Args:
    q: [N, K, Q, d].
    keys: a pair (k, v) for each part, in the layouts of spec.
    allowed: of each part, broadcasts to [B, K, N / B * Q, S].
    spec: xla.Spec.
  """
  rows, heads, queries, _ = q.shape
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  all_k, all_v, all_ok = [], [], []
  for (k, v), ok, layouts in zip(keys, allowed, spec.layouts, strict=True):
    k = jnp.einsum(f"b{layouts[0]}->bksd", k.astype(dtype))
    v = jnp.einsum(f"b{layouts[1]}->bksd", v.astype(dtype))
    group = rows // k.shape[0]
    shape = k.shape[0], heads, group * queries, k.shape[2]
    ok = jnp.broadcast_to(ok, shape)
    ok = ok.reshape(*shape[:2], group, queries, -1).swapaxes(1, 2)
    all_k.append(jnp.repeat(k, group, axis=0))
    all_v.append(jnp.repeat(v, group, axis=0))
    all_ok.append(ok.reshape(rows, heads, queries, -1))
  k, v = (jnp.concatenate(x, axis=2) for x in (all_k, all_v))
  ok = jnp.concatenate(all_ok, axis=3)
  s = jnp.einsum("nkqd,nksd->nkqs", q.astype(dtype), k, precision="highest")
  s = s * spec.scale
  if spec.softcap is not None:
    s = spec.softcap * jnp.tanh(s / spec.softcap)
  any_key = ok.any(axis=3)
  logsumexp = jax.nn.logsumexp(jnp.where(ok, s, xla.MASKED), axis=3)
  logsumexp = jnp.where(any_key, logsumexp, xla.MASKED)
  shifted = jnp.where(ok, s - logsumexp[..., None], xla.MASKED)
  p = jnp.where(any_key[..., None], jnp.exp(shifted), 0)
  out = jnp.einsum("nkqs,nksd->nkqd", p, v, precision="highest")
  return out, logsumexp
