"""Two distributions over the whole vocabulary compared, token by token.

    z = inv_temperature cap(hidden W^T);  p = softmax(z), q of the reference
    kl = sum_v p_v (log p_v - log q_v);  collision = sum_v p_v^2
    jsd = (KL(p || m) + KL(q || m)) / 2,  m = (p + q) / 2

A few tokens' logits of both models exist at a time, forward and backward: the
backward pass makes them again. The gradient is into p alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxrl_llm.distributed import sharding
from jaxrl_llm.objectives import divergence

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
  """KL to the reference and collision; never holds [M, V].

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

  def parts(log_p, log_q, p, q):
    del q
    return (p * (log_p - log_q)).sum(axis=1), (p * p).sum(axis=1)

  return Found(
    *_compared(
      (hidden, head),
      (reference_hidden, reference_head),
      mask,
      parts,
      inv_temperature=inv_temperature,
      softcap=softcap,
      chunk=chunk,
      axis_name=axis_name,
      vocab=vocab,
    )
  )


def vocabulary_jsd(
  hidden: Float[Array, "M D"],
  head: Float[Array, "V D"],
  reference_hidden: Float[Array, "M D"],
  reference_head: Float[Array, "V D"],
  mask: Bool[Array, "M"],
  **knobs: Any,
) -> Float[Array, "M"]:
  """Jensen-Shannon divergence of the two, in nats; arguments of vocabulary_kl.

  In [0, log 2]; exactly 0, without gradient, for the same hidden states.
  """

  def parts(log_p, log_q, p, q):
    del log_p, log_q
    return (divergence.jensen_shannon(p, q),)

  one, two = (hidden, head), (reference_hidden, reference_head)
  return _compared(one, two, mask, parts, **knobs)[0]


def on_each_device(
  compare: Callable[..., Any],
  hidden: Float[Array, "M D"],
  head: Float[Array, "V D"],
  reference_hidden: Float[Array, "M D"],
  reference_head: Float[Array, "V D"],
  mask: Bool[Array, "M"],
  **knobs: Any,
) -> Any:
  """compare(...), on each device's own rows and slice of the vocabulary.

  Args:
    compare: vocabulary_kl or vocabulary_jsd.
    hidden, head, reference_hidden, reference_head, mask, **knobs: its.
  """
  mesh = sharding.mesh_in_use()
  inputs = hidden, head, reference_hidden, reference_head, mask
  if mesh is None:
    return compare(*inputs, **knobs)
  tensor = sharding.RULES["vocab"]
  rows = sharding.partition(("rows",), mask.shape, mesh)
  vocab = head.shape[0]
  pad = ((0, -vocab % mesh.shape[tensor]), (0, 0))
  hidden_spec = PartitionSpec(*rows, None)
  head_spec = PartitionSpec(tensor, None)

  def local(*inputs):
    return compare(*inputs, axis_name=tensor, vocab=vocab, **knobs)

  return jax.shard_map(
    local,
    in_specs=(hidden_spec, head_spec, hidden_spec, head_spec, rows),
    out_specs=rows,
  )(
    hidden,
    jnp.pad(head, pad),
    reference_hidden,
    jnp.pad(reference_head, pad),
    mask,
  )


def _compared(
  policy: tuple[Array, Array],
  reference: tuple[Array, Array],
  mask: Bool[Array, "M"],
  parts: Callable[..., tuple[Array, ...]],
  *,
  inv_temperature: float = 1.0,
  softcap: float | None = None,
  chunk: int | None = None,
  axis_name: str | None = None,
  vocab: int | None = None,
) -> tuple[Float[Array, "M"], ...]:
  """Sums over the vocabulary: parts(log p, log q, p, q) -> [chunk] each."""
  (hidden, head), frozen = policy, jax.lax.stop_gradient(reference)
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
    p, q = (jnp.where(real, jnp.exp(x), 0.0) for x in (log_p, log_q))
    return _sum(parts(log_p, log_q, p, q), axis_name)

  count = len(mask)
  size = chunk or max(1, min(count, _TILE // head.shape[0]))
  found = jax.lax.map(of_a_chunk, [_cut(x, size) for x in clean])
  return tuple(jnp.where(mask, x.reshape(-1)[:count], 0.0) for x in found)


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
