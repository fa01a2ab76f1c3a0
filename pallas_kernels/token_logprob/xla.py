"""Token log-probabilities in chunks of the vocabulary, with their own vjp.

  u = hidden W^T;  c = softcap tanh(u / softcap), or u;  z = scale c
  logsumexp = log sum_v e^z_v;  logprob = z_y - logsumexp
  entropy = logsumexp - sum_v p_v z_v,  p = e^(z - logsumexp)

Each chunk gives its own maximum m, l = sum e^(z-m), a = sum e^(z-m) (z-m),
and the chunks are merged at the end. The backward pass recomputes a chunk's
logits and, with cotangents g1 (logprob), g2 (entropy), g3 (logsumexp), forms

  dz = g1 onehot(y) + p (g3 - g1 - g2 (z - logsumexp + entropy))
  du = dz scale (1 - (c / softcap)^2);  dhidden = du W;  dW = du^T hidden

The memory is one [N, chunk] tile and a few copies; W's gradient is written
once a chunk and only dhidden is carried, in float32. Chunking tokens instead
would carry a float32 copy of W's gradient. What nothing differentiates (a
frozen head, an entropy that is only logged) costs nothing.

On the CPU three things are pinned because XLA would choose slower ones: the
layouts of hidden^T and of dW's chunk (a bfloat16 product whose operands both
contract their first dimension runs at a fifth of the speed of the plain one)
and a float32 buffer for dW (a bfloat16 one is converted whole in each step).
"""

import functools
from typing import NamedTuple

import jax
from jax.experimental import layout
import jax.numpy as jnp

_TILE = {"cpu": 2**20, "default": 2**25}  # entries of an [N, chunk] tile
_LIMITS = {"cpu": (512, 4096), "default": (512, 8192)}


class Spec(NamedTuple):
  """What is known when tracing.

  Attributes:
    head_layout: "vd" or "dv".
    softcap: cap of the logits, or None.
    chunk: vocabulary entries at a time; None follows `chunk_size`.
    with_entropy: whether entropy is computed (None comes back if not).
    impl: the implementation, as dispatch.choose names it.
    backward: "xla" or "pallas", who makes the gradients of a kernel's values.
    blocks: tiles.Blocks of the kernels; None chooses by chip.
  """

  head_layout: str = "vd"
  softcap: float | None = None
  chunk: int | None = None
  with_entropy: bool = True
  impl: str = "xla"
  backward: str = "xla"
  blocks: tuple | None = None


def chunk_size(tokens: int, vocab: int, platform: str = "default") -> int:
  """Vocabulary entries at a time: a tile of ~4 MB on "cpu", else 128 MB.

  Prefers a divisor of the vocabulary near that size, so that no ragged tail
  has to be compiled.
  """
  low, high = _LIMITS[platform]
  target = min(max(_TILE[platform] // max(tokens, 1), low), high)
  if vocab <= target:
    return vocab
  target -= target % 128
  sizes = range(target, target // 2, -1)
  return next((size for size in sizes if vocab % size == 0), target)


def forward(hidden, head, targets, scale, mask=None, *, spec):
  """Returns (logprob, entropy or None, logsumexp); see reference.py.

  Args:
    hidden: [N, D].
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] ids; an id outside [0, V) counts as logit 0.
    scale: scalar, the inverse temperature.
    mask: not looked at; the door cleans what it excludes.
    spec: Spec.
  """
  del mask
  logsumexp, entropy = _by_platform(_partition, spec, hidden, head, scale)
  chosen = _chosen_logits(hidden, head, targets, scale, spec)
  return chosen - logsumexp, entropy, logsumexp


def backward(
  hidden,
  head,
  targets,
  scale,
  mask,
  entropy,
  logsumexp,
  g_logprob,
  g_entropy,
  g_logsumexp,
  *,
  spec,
  wanted,
):
  """Returns (dhidden or None, dW or None) in the dtypes of hidden and head.

  Args:
    hidden: [N, D].
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] ids.
    scale: scalar, the inverse temperature.
    mask: not looked at; cotangents are 0 where it is false.
    entropy: [N], or None if g_entropy is.
    logsumexp: [N].
    g_logprob: [N] cotangent; None if nothing depends on it, and likewise the
      next two. Not all three are None.
    g_entropy: [N] or None.
    g_logsumexp: [N] or None.
    spec: Spec.
    wanted: whether dhidden and dW are wanted.
  """
  del mask
  factor = common_factor(entropy, logsumexp, g_logprob, g_entropy, g_logsumexp)
  return _by_platform(
    functools.partial(_gradients, wanted=wanted),
    spec,
    *(hidden, head, scale, targets, logsumexp, factor, g_logprob, g_entropy),
  )


def common_factor(entropy, logsumexp, g_logprob, g_entropy, g_logsumexp):
  """g3 - g1 - g2 entropy [N]: what multiplies p whatever the column."""
  factor = -(jnp.zeros_like(logsumexp) if g_logprob is None else g_logprob)
  if g_logsumexp is not None:
    factor = factor + g_logsumexp
  if g_entropy is not None:
    factor = factor - g_entropy * entropy
  return factor


def _by_platform(function, spec, hidden, head, *args):
  """Lowers `function` with the chunk and layouts of the target platform."""
  tokens, vocab = hidden.shape[0], _vocab(head, spec)

  def build(platform):
    chunk = spec.chunk or chunk_size(tokens, vocab, platform)
    chosen = spec._replace(chunk=min(chunk, vocab))
    return functools.partial(function, spec=chosen, cpu=platform == "cpu")

  return jax.lax.platform_dependent(
    *(hidden, head, *args), cpu=build("cpu"), default=build("default")
  )


def _partition(hidden, head, scale, *, spec, cpu):
  """(logsumexp, entropy or None), each [N]."""
  del cpu

  def step(start, size):
    weights = _rows(head, start, size, spec).astype(hidden.dtype)
    z, _ = _logits(hidden, weights, scale, spec)
    top = z.max(axis=1)
    shifted = z - top[:, None]
    exp = jnp.exp(shifted)
    if not spec.with_entropy:
      return top, exp.sum(axis=1)
    return top, exp.sum(axis=1), (exp * shifted).sum(axis=1)

  parts = _stack_chunks(step, _vocab(head, spec), spec.chunk)
  top = parts[0].max(axis=0)
  gap = parts[0] - top[None]
  total = (jnp.exp(gap) * parts[1]).sum(axis=0)
  logsumexp = top + jnp.log(total)
  if not spec.with_entropy:
    return logsumexp, None
  moment = (jnp.exp(gap) * (parts[2] + gap * parts[1])).sum(axis=0)
  return logsumexp, jnp.log(total) - moment / total


def _gradients(
  hidden,
  head,
  scale,
  targets,
  logsumexp,
  factor,
  g_logprob,
  g_entropy,
  *,
  spec,
  cpu,
  wanted,
):
  dot = functools.partial(_dot, dtype=logsumexp.dtype)
  hidden_t = _row_major(hidden.T, cpu)
  d_head_dtype = logsumexp.dtype if cpu else head.dtype

  def step(grads, start, size):
    d_hidden, d_head = grads
    weights = _rows(head, start, size, spec).astype(hidden.dtype)
    z, slope = _logits(hidden, weights, scale, spec)
    z = z - logsumexp[:, None]
    dz = factor[:, None]
    if g_entropy is not None:
      dz = dz - g_entropy[:, None] * z
    dz = jnp.exp(z) * dz
    if g_logprob is not None:
      column = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
      hit = column == (targets - start)[:, None]
      dz = dz + jnp.where(hit, g_logprob[:, None], 0)
    du = (dz * slope).astype(hidden.dtype)
    if wanted[0]:
      axis = 0 if spec.head_layout == "vd" else 1
      d_hidden = d_hidden + dot(du, weights, 1, axis)
    if wanted[1]:
      part = _row_major(dot(hidden_t, du, 1, 0), cpu).astype(d_head_dtype)
      if spec.head_layout == "vd":
        part = _row_major(part.T, cpu)
      d_head = _write_rows(d_head, part, start, spec)
    return d_hidden, d_head

  grads = (
    jnp.zeros_like(hidden, logsumexp.dtype) if wanted[0] else None,
    jnp.zeros_like(head, d_head_dtype) if wanted[1] else None,
  )
  grads = _fold_chunks(step, grads, _vocab(head, spec), spec.chunk)
  return tuple(
    g if g is None else g.astype(a.dtype)
    for g, a in zip(grads, (hidden, head), strict=True)
  )


def _dot(a, b, a_axis, b_axis, *, dtype):
  """Product of matrices contracting one axis each, accumulated in `dtype`."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision="highest" if a.dtype == dtype else None,
    preferred_element_type=dtype,
  )


def _logits(hidden, weights, scale, spec):
  """Scaled logits [N, chunk] and their slope d z / d u."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  axis = 1 if spec.head_layout == "vd" else 0
  logits = _dot(hidden, weights, 1, axis, dtype=dtype)
  if spec.softcap is None:
    return logits * scale, scale
  tanh = jnp.tanh(logits / spec.softcap)
  return (spec.softcap * scale) * tanh, scale * (1 - tanh * tanh)


def _chosen_logits(hidden, head, targets, scale, spec):
  """z_y from the rows of W that were chosen: N D work instead of N V."""
  inside = (targets >= 0) & (targets < _vocab(head, spec))
  axis = 0 if spec.head_layout == "vd" else 1
  rows = jnp.take(head, jnp.where(inside, targets, 0), axis=axis)
  rows = (rows if axis == 0 else rows.T).astype(hidden.dtype)
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = (hidden.astype(dtype) * rows.astype(dtype)).sum(axis=1)
  if spec.softcap is not None:
    logits = spec.softcap * jnp.tanh(logits / spec.softcap)
  return jnp.where(inside, logits * scale, 0)


def _vocab(head, spec):
  return head.shape[0 if spec.head_layout == "vd" else 1]


def _rows(head, start, size, spec):
  axis = 0 if spec.head_layout == "vd" else 1
  return jax.lax.dynamic_slice_in_dim(head, start, size, axis)


def _write_rows(d_head, part, start, spec):
  axis = 0 if spec.head_layout == "vd" else 1
  return jax.lax.dynamic_update_slice_in_dim(d_head, part, start, axis)


def _row_major(matrix, cpu):
  if not cpu:
    return matrix
  return layout.with_layout_constraint(matrix, layout.Layout((0, 1)))


def _stack_chunks(step, vocab, chunk):
  """step(start, size) for all chunks, stacked; the ragged tail comes last."""
  count, tail = divmod(vocab, chunk)
  if count == 1:
    parts = tuple(part[None] for part in step(0, chunk))
  else:
    parts = jax.lax.map(lambda i: step(i * chunk, chunk), jnp.arange(count))
  if tail:
    last = step(count * chunk, tail)
    parts = tuple(
      jnp.concatenate([part, end[None]])
      for part, end in zip(parts, last, strict=True)
    )
  return parts


def _fold_chunks(step, carry, vocab, chunk):
  """step(carry, start, size) over all chunks, the ragged tail last."""
  count, tail = divmod(vocab, chunk)
  if count == 1:
    carry = step(carry, 0, chunk)
  else:
    carry, _ = jax.lax.scan(
      lambda c, i: (step(c, i * chunk, chunk), None), carry, jnp.arange(count)
    )
  return step(carry, count * chunk, tail) if tail else carry
