"""The definition: the whole distribution, truncated with a full sort."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels.sampling import noise as noises
from pallas_kernels.sampling import xla


def sample(logits, scale, noise, spec):
  """Returns (token, logprob, logprob_untruncated); arguments as in xla.py."""
  z = logits.astype(scale.dtype) * scale
  logp = jax.nn.log_softmax(z, axis=1)
  keep = kept(z, spec)
  truncated = jax.nn.log_softmax(jnp.where(keep, z, -jnp.inf), axis=1)
  if spec.method == "greedy":
    token = jnp.argmax(z, axis=1)
    truncated = jnp.zeros_like(truncated)
  elif spec.method == "gumbel":
    gumbel = noises.gumbel(noise, z.shape[1], z.dtype)
    token = jnp.argmax(truncated + gumbel, axis=1)
  else:
    token = _two_levels(jnp.exp(truncated), noise.astype(z.dtype))

  def of(logp):
    return jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]

  return token.astype(jnp.int32), of(truncated), of(logp)


def kept(z, spec):
  """[B, V] bool: what top-k, then top-p, then min-p leave of logits z."""
  keep = jnp.ones(z.shape, bool)
  if spec.top_k is not None:
    order = jnp.flip(jnp.sort(z, axis=1), axis=1)
    keep &= z >= order[:, spec.top_k - 1 : spec.top_k]
  if spec.top_p is not None:
    p = jax.nn.softmax(jnp.where(keep, z, -jnp.inf), axis=1)
    order = jnp.flip(jnp.sort(p, axis=1), axis=1)
    before = jnp.cumsum(order, axis=1) - order
    size = (before < spec.top_p).sum(axis=1, keepdims=True)
    keep &= p >= jnp.take_along_axis(order, size - 1, axis=1)
  if spec.min_p is not None:
    keep &= z - z.max(axis=1, keepdims=True) >= math.log(spec.min_p)
  return keep


def _two_levels(p, uniforms):
  """The token at uniforms [B, 2]: a block of 128 by one, then its entry."""
  pad = -p.shape[1] % xla.BLOCK
  blocks = jnp.pad(p, ((0, 0), (0, pad))).reshape(p.shape[0], -1, xla.BLOCK)

  def row(blocks, uniforms):
    block = _quantile(blocks.sum(axis=1), uniforms[0])
    return block * xla.BLOCK + _quantile(blocks[block], uniforms[1])

  return jax.vmap(row)(blocks, uniforms)


def _quantile(p, uniform):
  """Smallest index of positive mass whose distribution function exceeds u."""
  beyond = (jnp.cumsum(p) > uniform * p.sum()) & (p > 0)
  last = p.shape[0] - 1 - jnp.argmax(jnp.flip(p > 0))
  return jnp.where(beyond.any(), jnp.argmax(beyond), last)
