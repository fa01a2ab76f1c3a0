"""KL of the policy to the reference over the whole vocabulary, token by token.

    z = inv_temperature cap(hidden W^T);  p = softmax(z), q of the reference
    kl = sum_v p_v (log p_v - log q_v);  collision = sum_v p_v^2

A few tokens' logits of both models exist at a time, forward and backward: the
backward pass makes them again. The gradient is into the policy alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Entries of the logits of a chunk of tokens.
_TILE = 2**23


class Found(NamedTuple):
  """Float32, 0 outside the mask.

  Attributes:
    kl: [M] nats.
    collision: [M] probability that two draws agree.
  """

  kl: Float[Array, "M"]
  collision: Float[Array, "M"]


def vocabulary_kl(
  hidden: Float[Array, "M D"],
  head: Float[Array, "V D"],
  reference_hidden: Float[Array, "M D"],
  reference_head: Float[Array, "V D"],
  mask: Bool[Array, "M"],
  *,
  inv_temperature: float = 1.0,
  softcap: float | None = None,
  chunk: int | None = None,
  axis_name: str | None = None,
  vocab: int | None = None,
) -> Found:
  """The module's equations; never holds [M, V].

  Inside shard_map each device may hold a slice of the vocabulary: then the
  maximum and the sums of a chunk are those of all devices.

  Args:
    hidden: of the policy; products take its dtype.
    head: of the policy, or this device's rows of it.
    reference_hidden: of the frozen reference.
    reference_head: of the frozen reference, the same rows.
    mask: true on tokens that count; the others may hold anything.
    inv_temperature: 1 / temperature, positive.
    softcap: of the logits, or None.
    chunk: tokens at a time; None: as many as have 2^23 logits.
    axis_name: mesh axis that splits the vocabulary.
    vocab: V, where the last rows of all devices are padding; None: all count.
  """
  frozen = jax.lax.stop_gradient((reference_hidden, reference_head))
  real = _real_rows(head.shape[0], axis_name, vocab)
  clean = [jnp.where(mask[:, None], x, 0) for x in (hidden, frozen[0])]

  def log_softmax(hidden, head):
    z = inv_temperature * _logits(hidden, head, softcap)
    low = jnp.finfo(z.dtype).min
    top = _max(jnp.where(real, z, low).max(axis=1, keepdims=True), axis_name)
    z = jnp.where(real, z - top, 0.0)
    total = jnp.where(real, jnp.exp(z), 0.0).sum(axis=1, keepdims=True)
    return z - jnp.log(_sum(total, axis_name))

  @jax.checkpoint
  def of_a_chunk(rows):
    log_p = log_softmax(rows[0], head)
    log_q = jax.lax.stop_gradient(log_softmax(rows[1], frozen[1]))
    p = jnp.where(real, jnp.exp(log_p), 0.0)
    parts = (p * (log_p - log_q)).sum(axis=1), (p * p).sum(axis=1)
    return _sum(parts, axis_name)

  count = len(mask)
  size = chunk or max(1, min(count, _TILE // head.shape[0]))
  kl, collision = jax.lax.map(of_a_chunk, [_cut(x, size) for x in clean])
  uncut = lambda x: jnp.where(mask, x.reshape(-1)[:count], 0.0)  # noqa: E731
  return Found(uncut(kl), uncut(collision))


def _real_rows(size, axis_name, vocab) -> Bool[Array, "V"]:
  """Which of this device's rows are vocabulary."""
  if vocab is None:
    return jnp.ones(size, bool)
  first = jax.lax.axis_index(axis_name) * size if axis_name else 0
  return first + jnp.arange(size) < vocab


def _logits(hidden, head, softcap):
  """Float32, products in the dtype of `hidden`."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jax.lax.dot_general(
    hidden,
    head.astype(hidden.dtype),
    (((1,), (1,)), ((), ())),
    precision="highest" if hidden.dtype == dtype else None,
    preferred_element_type=dtype,
  )
  if softcap is None:
    return logits
  return softcap * jnp.tanh(logits / softcap)


def _cut(rows, size):
  """[M, D] -> [chunks, size, D], zeros behind."""
  rows = jnp.pad(rows, ((0, -len(rows) % size), (0, 0)))
  return rows.reshape(-1, size, rows.shape[1])


def _max(x, axis_name):
  x = jax.lax.stop_gradient(x)
  return jax.lax.pmax(x, axis_name) if axis_name else x


def _sum(x, axis_name):
  return jax.lax.psum(x, axis_name) if axis_name else x
