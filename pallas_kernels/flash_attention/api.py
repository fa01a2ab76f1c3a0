"""The door: checks, and the choice of an implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.flash_attention import gpu, reference, tpu, xla
from pallas_kernels.flash_attention.pattern import Pattern

_NAME = "flash_attention"
_CAUSAL = Pattern()


def flash_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  pattern: Pattern = _CAUSAL,
  mask: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  impl: str | None = None,
  block: int | None = None,
) -> jax.Array:
  """Softmax attention of every token of a row to what it may see of the row.

    s = scale q k;  s = softcap tanh(s / softcap), if there is a cap
    out = sum e^s v / sum e^s

  with sums over the keys that `pattern` allows and that are of the query's
  segment. No array holds the scores of a row, forward or backward: memory is
  linear in L. Blocks of scores that the pattern hides whole are not computed.
  Differentiable in q, k and v. Scores and softmax are float32 (or float64);
  factors of products keep the dtype of q, k and v.

  Args:
    q: [R, L, H, d].
    k: [R, L, K, d]; K divides H, and heads h H / K .. share key head h.
    v: [R, L, K, d].
    pattern: who sees whom by place: causal rows, or a prefix and branches.
    mask: [R, L] bool, true on real tokens, which are neighbours in a causal row
      and, in one with branches, within the prefix and within each branch (a
      branch has them first, the prefix last). Padding may hold anything: it
      counts as 0, no real token sees it, and its output is finite.
    segment_ids: [R, L] integers: a token sees its own segment alone. Equal ids
      are neighbours. Padding is a segment. Not together with `mask`.
    scale: multiplies q k; None is d ** -0.5.
    softcap: positive cap of the scores, or None.
    impl: see dispatch.py. "pallas" is JAX's splash attention. "auto" takes it
      on TPU, and cuDNN on a GPU where gpu.py says that it can.
    block: tokens of a block of scores, a multiple of 128 on TPU; None picks.

  Returns:
    out [R, L, H, d] in the dtype of q.

  Raises:
    ValueError: if shapes do not fit, softcap or block is not positive, or both
      mask and segment_ids are given.
    TypeError: if mask is not bool or segment_ids are no integers.

  References:
    Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691.
  """
  _check(q, k, v, pattern)
  _check_numbers(softcap, block)
  segments = _rows(mask, segment_ids, q)
  if mask is not None:
    # Else padding that attends to padding could overflow, and its gradient too.
    q, k, v = (jnp.where(mask[:, :, None, None], x, 0) for x in (q, k, v))
  scale = q.shape[3] ** -0.5 if scale is None else scale
  spec = xla.Spec(scale, softcap, pattern, block)
  return dispatch.call(
    _NAME,
    impl,
    *(q, k, v, segments),
    xla=lambda *args: xla.attend(*args, spec),
    reference=lambda *args: reference.attend(*args, spec),
    pallas=lambda *args, interpret: tpu.attend(
      *args, spec, interpret=interpret
    ),
    cuda=None
    if segment_ids is not None
    else lambda *args: gpu.attend(*args, spec),
  )


def _rows(mask, segment_ids, q):
  """[R, L] int32, or None where a row is one segment."""
  if mask is not None and segment_ids is not None:
    raise ValueError(f"{_NAME} takes mask or segment_ids, got both.")
  given = segment_ids if mask is None else mask
  if given is None:
    return None
  if given.shape != q.shape[:2]:
    name = "mask" if segment_ids is None else "segment_ids"
    raise ValueError(
      f"{_NAME}: {name} must be [R, L] {q.shape[:2]}, got {given.shape}."
    )
  if mask is not None and mask.dtype != bool:
    raise TypeError(f"{_NAME}: mask must be bool, got {mask.dtype}.")
  if mask is None and not jnp.issubdtype(given.dtype, jnp.integer):
    raise TypeError(
      f"{_NAME}: segment_ids must be integers, got {given.dtype}."
    )
  return given.astype(jnp.int32)


def _check_numbers(softcap, block):
  if softcap is not None and softcap <= 0:
    raise ValueError(
      f"{_NAME}: softcap must be positive or None, got {softcap}."
    )
  if block is not None and block < 1:
    raise ValueError(f"{_NAME}: block must be at least 1, got {block}.")


def _check(q, k, v, pattern):
  fits = (
    q.ndim == k.ndim == 4
    and k.shape == v.shape
    and q.shape[:2] == k.shape[:2]
    and q.shape[3] == k.shape[3]
    and min(q.shape) > 0
    and q.shape[2] % max(k.shape[2], 1) == 0
  )
  if not fits:
    raise ValueError(
      f"{_NAME} needs q [R, L, H, d] and k, v [R, L, K, d] with K dividing H"
      f" and at least one of each, got {q.shape}, {k.shape} and {v.shape}."
    )
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(
      f"{_NAME}: q, k and v must have one dtype, got {q.dtype}, {k.dtype} and"
      f" {v.dtype}."
    )
  if pattern.branch and pattern.prefix > q.shape[1]:
    raise ValueError(
      f"{_NAME}: the prefix must be within the row, got prefix"
      f" {pattern.prefix} and L = {q.shape[1]}."
    )
