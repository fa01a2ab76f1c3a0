"""The doors: attention over parts, over a shared prompt, and merging."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.prefix_attention import reference, xla


class Part(NamedTuple):
  """Keys and values that rows attend to.

  Attributes:
    k, v: [B, K, S, d] with the default layouts. B divides the rows N: N / B
      neighbours share them. What `allowed` hides may hold anything finite: its
      weight and its gradient are exactly 0, but 0 * nan is nan.
    allowed: bool, broadcasts to [B, K, N / B * Q, S], where the rows' queries
      stand side by side.
    k_layout, v_layout: how k and v lie after B: "ksd", "skd" for [B, S, K, d],
      or another order of the three. Nothing is transposed to change it.
  """

  k: jax.Array
  v: jax.Array
  allowed: jax.Array
  k_layout: str = "ksd"
  v_layout: str = "ksd"


def attend(
  q: jax.Array,
  parts: Sequence[Part],
  *,
  scale: float,
  softcap: float | None = None,
  with_logsumexp: bool = False,
  impl: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Softmax attention over the keys of all parts at once.

    s = scale q k;  s = softcap tanh(s / softcap), if there is a cap
    logsumexp = log sum e^s;  out = sum e^(s - logsumexp) v

  with sums over all allowed keys of all parts. Nothing is concatenated or
  repeated: a part that B rows of keys share among N rows of queries is read
  once, as B products with N / B * Q queries each. Differentiable in q, k and v
  through both results. Scores, softmax and results are float32 (or float64);
  factors of products keep the dtype of k and v.

  Memory: the scores of every part, [N, K, Q, S], and what its products need;
  the backward pass keeps q, k, v, out and logsumexp and recomputes the rest.

  Args:
    q: [N, K, Q, d], queries by key head; Q counts queries and the heads that
      share keys.
    parts: at least one.
    scale: multiplies q k.
    softcap: positive cap of the scores, or None.
    with_logsumexp: whether to return it, for `merge`. A row that may see no
      key at all then has out = 0, logsumexp = -1e30 and no gradient; without
      it, that row's out is finite and means nothing.
    impl: "xla", "reference" or None; see dispatch.py.

  Returns:
    out [N, K, Q, d], or (out, logsumexp [N, K, Q]).

  Raises:
    ValueError: if shapes or layouts do not fit each other.

  References:
    Dao et al. 2022, arXiv:2205.14135 (the backward pass); Juravsky et al.
    2024, arXiv:2402.05099 (one prompt shared by many rows).
  """
  if softcap is not None and softcap <= 0:
    raise ValueError(f"softcap must be positive or None, got {softcap}.")
  if not parts:
    raise ValueError("attend needs at least one part, got none.")
  for part in parts:
    _check_part(q, part)
  keys = tuple((part.k, part.v) for part in parts)
  allowed = tuple(part.allowed for part in parts)
  layouts = tuple((part.k_layout, part.v_layout) for part in parts)
  spec = xla.Spec(scale, softcap, layouts, with_logsumexp)
  out, logsumexp = dispatch.call(
    "prefix_attention",
    impl,
    *(q, keys, allowed),
    xla=lambda *args: xla.attend(*args, spec),
    reference=lambda *args: reference.attend(*args, spec),
  )
  return (out, logsumexp) if with_logsumexp else out


def shared_prefix_attention(
  q: jax.Array,
  prompt_k: jax.Array,
  prompt_v: jax.Array,
  prompt_mask: jax.Array,
  k: jax.Array,
  v: jax.Array,
  length: jax.Array,
  *,
  group_size: int,
  scale: float | None = None,
  softcap: float | None = None,
  with_logsumexp: bool = False,
  impl: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """One decode step of N rows, each group of which shares its prompt's keys.

  Equal to attention over [prompt | own tokens] with the prompt repeated G
  times, but the prompt's keys and values are held and read once a group: a
  step reads P + G C of them a group instead of G (P + C).

  Args:
    q: [N, H, d], one query a row and head; groups contiguous, N = B * G.
    prompt_k, prompt_v: [B, P, K, d]; K divides H, and heads h K / H .. share
      key head h (grouped-query attention).
    prompt_mask: [B, P], true on prompt tokens, with padding on either side;
      or [B], integer lengths of prompts that are padded on the right.
    k, v: [N, C, K, d], keys and values of the rows' own tokens.
    length: [N] integers, own tokens that are there (the query's own among
      them, if its key is to be seen); 0 is allowed.
    group_size: G.
    scale: multiplies q k; None is d ** -0.5.
    softcap: positive cap of the scores, or None.
    with_logsumexp: whether to return it, for `merge` with a further part.
    impl: "xla", "reference" or None; see dispatch.py.

  Returns:
    out [N, H, d], or (out, logsumexp [N, H]); float32. Keys beyond a mask or
    length may be anything finite, see Part.

  Raises:
    ValueError: if shapes or group_size do not fit each other.

  References:
    Juravsky et al. 2024, arXiv:2402.05099.
  """
  _check_shared(q, prompt_k, prompt_v, prompt_mask, k, v, length, group_size)
  rows, heads, dim = q.shape
  kv_heads = k.shape[2]
  if prompt_mask.ndim == 1:
    prompt_mask = _before(prompt_mask, prompt_k.shape[1])
  shared = Part(prompt_k, prompt_v, prompt_mask[:, None, None], "skd", "skd")
  seen = _before(length, k.shape[1])
  own = Part(k, v, seen[:, None, None], "skd", "skd")
  out, logsumexp = attend(
    q.reshape(rows, kv_heads, heads // kv_heads, dim),
    (shared, own),
    scale=dim**-0.5 if scale is None else scale,
    softcap=softcap,
    with_logsumexp=True,
    impl=impl,
  )
  out = out.reshape(q.shape)
  return (out, logsumexp.reshape(rows, heads)) if with_logsumexp else out


def merge(
  out1: jax.Array,
  logsumexp1: jax.Array,
  out2: jax.Array,
  logsumexp2: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the union of two disjoint sets of keys.

    logsumexp = log(e^logsumexp1 + e^logsumexp2)
    out = e^(logsumexp1 - logsumexp) out1 + e^(logsumexp2 - logsumexp) out2

  Commutative and associative. A part with logsumexp <= -1e30 (-inf too) is
  empty: the other comes back as it is, whatever the empty one's out holds.

  Args:
    out1, out2: [..., d], normalised outputs of attention.
    logsumexp1, logsumexp2: [...], of their scaled scores, in nats.

  Returns:
    (out, logsumexp), to be merged further; both differentiable.
  """
  pair = jnp.maximum(jnp.stack([logsumexp1, logsumexp2]), xla.MASKED)
  # Of the two results only the rounding depends on the maximum.
  largest = jax.lax.stop_gradient(pair.max(axis=0))
  empty = pair <= xla.MASKED
  weights = jnp.where(empty, 0, jnp.exp(pair - largest[None]))
  total = weights.sum(axis=0)
  nothing = total == 0
  total = jnp.where(nothing, 1, total)
  outs = jnp.where(empty[..., None], 0, jnp.stack([out1, out2]))
  out = (weights[..., None] * outs).sum(axis=0) / total[..., None]
  return out, jnp.where(nothing, xla.MASKED, largest + jnp.log(total))


def _before(length, size):
  """[R] -> [R, size], true on the first `length` places."""
  place = jnp.arange(size, dtype=length.dtype)
  return place[None] < length[:, None]


def _check_part(q, part):
  layouts = part.k_layout, part.v_layout
  if any(sorted(layout) != sorted("ksd") for layout in layouts):
    raise ValueError(f"k_layout and v_layout order 'ksd', got {layouts}.")
  shapes = q.shape, part.k.shape, part.v.shape
  if any(len(shape) != 4 for shape in shapes):
    raise ValueError(
      f"attend needs q [N, K, Q, d] and k, v of rank 4, got {shapes}."
    )
  sizes = [
    {"rows": x.shape[0], **dict(zip(layout, x.shape[1:], strict=True))}
    for layout, x in zip(layouts, (part.k, part.v), strict=True)
  ]
  kd = sizes[0]["k"], sizes[0]["d"]
  if (
    sizes[0] != sizes[1]
    or kd != (q.shape[1], q.shape[3])
    or 0 in sizes[0].values()
    or q.shape[0] % sizes[0]["rows"]
  ):
    raise ValueError(
      "attend needs q [N, K, Q, d] and k, v with B dividing N, the same K and"
      f" d and at least one key, got {shapes} with layouts {layouts}."
    )


def _check_shared(q, prompt_k, prompt_v, prompt_mask, k, v, length, group_size):
  if q.ndim != 3 or k.ndim != 4 or prompt_k.ndim != 4:
    raise ValueError(
      "shared_prefix_attention needs q [N, H, d], prompt_k [B, P, K, d] and k"
      f" [N, C, K, d], got {q.shape}, {prompt_k.shape} and {k.shape}."
    )
  rows, heads, dim = q.shape
  prompts, size, kv_heads, _ = prompt_k.shape
  if prompts * group_size != rows:
    raise ValueError(
      f"group_size must be N / B = {rows} / {prompts}, got {group_size}."
    )
  if heads % kv_heads:
    raise ValueError(f"K must divide H, got K = {kv_heads} and H = {heads}.")
  expected = {
    "prompt_k": (prompt_k.shape, [(prompts, size, kv_heads, dim)]),
    "prompt_v": (prompt_v.shape, [prompt_k.shape]),
    "prompt_mask": (prompt_mask.shape, [(prompts, size), (prompts,)]),
    "k": (k.shape, [(rows, k.shape[1], kv_heads, dim)]),
    "v": (v.shape, [k.shape]),
    "length": (length.shape, [(rows,)]),
  }
  for name, (shape, legal) in expected.items():
    if shape not in legal:
      raise ValueError(f"{name} must be of shape {legal}, got {shape}.")
  kinds = jnp.bool_ if prompt_mask.ndim == 2 else jnp.integer
  if not jnp.issubdtype(prompt_mask.dtype, kinds):
    raise TypeError(
      "prompt_mask is [B, P] bool or [B] integers, got"
      f" {prompt_mask.shape} {prompt_mask.dtype}."
    )
  if not jnp.issubdtype(length.dtype, jnp.integer):
    raise TypeError(f"length must be integers, got {length.dtype}.")
