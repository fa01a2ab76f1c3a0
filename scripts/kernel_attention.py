"""Attention over whole rows for bench_kernels: causal, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import kernel_case

from pallas_kernels import flash_attention, prefix_attention

_HEADS, _KV_HEADS, _DIM = 16, 8, 128


def flash_attention_grad_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """One row of `length` tokens; naive writes the softmax of all scores."""
  length, scale = s.length, _DIM**-0.5
  group = _HEADS // _KV_HEADS

  def past():
    place = jnp.arange(length)
    return (place[:, None] >= place[None])[None, None]

  def naive(q, k, v):
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    scores = jnp.einsum("rqhd,rkhd->rhqk", q, k).astype(jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(past(), scores, -1e30), axis=3)
    return jnp.einsum("rhqk,rkhd->rqhd", weights.astype(v.dtype), v)

  def parts(q, k, v):
    q = q.reshape(1, length, _KV_HEADS, group, _DIM)
    q = q.transpose(0, 2, 3, 1, 4).reshape(1, _KV_HEADS, -1, _DIM)
    allowed = jnp.tile(past(), (1, 1, group, 1))
    part = prefix_attention.Part(k, v, allowed, "skd", "skd")
    return prefix_attention.attend(q, [part], scale=scale)

  def flash(impl):
    return functools.partial(flash_attention.flash_attention, impl=impl)

  shape = functools.partial(kernel_case.shape, dtype=s.dtype)
  own = shape(1, length, _HEADS, _DIM), *[shape(1, length, _KV_HEADS, _DIM)] * 2
  # Half of the scores: two products forward, five backward.
  flops = 7.0 * length * length * _HEADS * _DIM
  return kernel_case.make(
    "flash_attention_grad",
    {
      "naive": _with_gradients(naive),
      "prefix_attention": _with_gradients(parts),
      "xla": _with_gradients(flash("xla")),
    },
    own,
    flops=flops,
    nbytes=jnp.dtype(s.dtype).itemsize * 4.0 * length * _DIM * _HEADS,
    kernels={"pallas": _with_gradients(flash("pallas"))},
  )


def _with_gradients(attend):
  def run(q, k, v):
    out, vjp = jax.vjp(attend, q, k, v)
    return out, vjp(jnp.ones_like(out))

  return run
