"""Decoding for bench_kernels: one token a row, attention over a cache."""

import functools

import jax
import jax.numpy as jnp
import kernel_case

from pallas_kernels import prefix_attention, sampling

_GROUP = 16
_HEADS, _KV_HEADS, _DIM = 8, 2, 64


def _rows(s: kernel_case.Sizes) -> int:
  return max(s.rows // 16, _GROUP)


def _logits(s):
  return kernel_case.shape(_rows(s), s.vocab)


def _keys(rows):
  return sampling.row_keys(jax.random.key(0), jnp.arange(rows))


def sample_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """softmax at temperature 1; naive is a categorical draw and log_softmax."""

  def naive(logits):
    token = jax.random.categorical(jax.random.key(0), logits)
    logprobs = jax.nn.log_softmax(logits)
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=1)

  return kernel_case.make(
    "sample",
    {"naive": naive, "inverse": _draw("inverse"), "gumbel": _draw("gumbel")},
    (_logits(s),),
    flops=0.0,
    nbytes=4.0 * _rows(s) * s.vocab,
  )


def sample_top_k_p_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """top-k 50, then top-p 0.95; naive sorts each row."""
  rows = _rows(s)

  def naive(logits):
    ordered = jnp.sort(logits, axis=1)[:, ::-1]
    kept = jnp.where(logits >= ordered[:, 49:50], logits, -jnp.inf)
    top = jnp.where(jnp.arange(s.vocab)[None] < 50, ordered, -jnp.inf)
    mass = jnp.cumsum(jax.nn.softmax(top), axis=1)
    last = (mass < 0.95).sum(axis=1)
    floor = jnp.take_along_axis(top, last[:, None], axis=1)
    kept = jnp.where(kept >= floor, kept, -jnp.inf)
    token = jax.random.categorical(jax.random.key(0), kept)
    return token, jax.nn.log_softmax(kept)[jnp.arange(rows), token]

  return kernel_case.make(
    "sample_top_k_p",
    {"naive": naive, "inverse": _draw("inverse", top_k=50, top_p=0.95)},
    (_logits(s),),
    flops=0.0,
    nbytes=4.0 * rows * s.vocab,
  )


def _draw(method, **truncation):
  def run(logits):
    keys = _keys(logits.shape[0])
    return tuple(sampling.sample(logits, keys, method=method, **truncation))

  return run


def prefix_attention_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """One token a row over a shared prompt; naive repeats the prompt's keys."""
  rows = _rows(s) // _GROUP * _GROUP
  prompts, size = rows // _GROUP, max(s.length // 2, 1)

  def shared(q, prompt_k, prompt_v, k, v):
    return prefix_attention.shared_prefix_attention(
      q,
      prompt_k,
      prompt_v,
      jnp.full(prompts, size),
      k,
      v,
      jnp.full(rows, size),
      group_size=_GROUP,
    )

  def naive(q, prompt_k, prompt_v, k, v):
    keys, values = (
      jnp.concatenate([jnp.repeat(a, _GROUP, axis=0), b], axis=1)
      for a, b in ((prompt_k, k), (prompt_v, v))
    )
    return jax.nn.dot_product_attention(q[:, None], keys, values)[:, 0]

  shape = functools.partial(kernel_case.shape, dtype=s.dtype)
  past = (size, _KV_HEADS, _DIM)
  return kernel_case.make(
    "prefix_attention",
    {"naive": naive, "xla": shared},
    (
      shape(rows, _HEADS, _DIM),
      *[shape(prompts, *past)] * 2,
      *[shape(rows, *past)] * 2,
    ),
    flops=4.0 * rows * _HEADS * _DIM * 2 * size,
    nbytes=jnp.dtype(s.dtype).itemsize
    * 2.0
    * (rows + prompts)
    * size
    * _KV_HEADS
    * _DIM,
  )
