"""The truth: all scores at once, plain autodiff."""

import jax
import jax.numpy as jnp


def attend(q, k, v, segments, spec):
  """Returns out [R, L, H, d].

  Args:
    q: [R, L, H, d].
    k: [R, L, K, d]; heads h K / H .. share a key head.
    v: [R, L, K, d].
    segments: [R, L] int32, or None for one segment a row.
    spec: xla.Spec.
  """
  length, heads, kv_heads = q.shape[1], q.shape[2], k.shape[2]
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  q = q.astype(dtype)
  k, v = (
    jnp.repeat(x.astype(dtype), heads // kv_heads, axis=2) for x in (k, v)
  )
  s = jnp.einsum("rqhd,rkhd->rhqk", q, k, precision="highest") * spec.scale
  if spec.softcap is not None:
    s = spec.softcap * jnp.tanh(s / spec.softcap)
  place, shift = spec.pattern.places(length), spec.pattern.shifts(length)
  index = jnp.arange(length)[None]
  allowed = spec.pattern.allows(place[:, None], shift[:, None], index)[None]
  if segments is not None:
    allowed = allowed & (segments[:, :, None] == segments[:, None])
  p = jax.nn.softmax(jnp.where(allowed[:, None], s, -jnp.inf), axis=3)
  return jnp.einsum("rhqk,rkhd->rqhd", p, v, precision="highest")
