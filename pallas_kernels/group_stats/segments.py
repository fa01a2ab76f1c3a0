"""The door to segments: checks, masks, the choice between the two matrices."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.group_stats import moments, reference, xla

FORMS = ("equality", "one_hot")

_EQUALITY_ITEMS = 1024  # up to here all pairs cost less than they are worth


def segment_mean(
  x: jax.Array,
  ids: jax.Array,
  mask: jax.Array | None = None,
  *,
  num_segments: int | None = None,
  form: str | None = None,
  impl: str | None = None,
) -> jax.Array:
  """Mean of the segment of each item; arguments as in segment_normalize.

  Returns:
    [B, K] in units of x; 0 where the mask is false.
  """
  found, mask = _segments(x, ids, mask, num_segments, form, impl)
  return jnp.where(mask, found.mean, 0)


def segment_std(
  x: jax.Array,
  ids: jax.Array,
  mask: jax.Array | None = None,
  *,
  ddof: int = 1,
  num_segments: int | None = None,
  form: str | None = None,
  impl: str | None = None,
) -> jax.Array:
  """Std of the segment of each item; arguments as in segment_normalize.

  Returns:
    [B, K] in units of x; exactly 0, in gradient too, where all are equal or
    the mask is false.
  """
  if ddof not in (0, 1):
    raise ValueError(f"ddof must be 0 or 1, got {ddof}.")
  found, mask = _segments(x, ids, mask, num_segments, form, impl)
  return jnp.where(mask, found.std(ddof=ddof), 0)


def segment_normalize(
  x: jax.Array,
  ids: jax.Array,
  mask: jax.Array | None = None,
  *,
  center: str = "mean",
  scale: str | None = "std",
  eps: float = 1e-4,
  ddof: int = 1,
  num_segments: int | None = None,
  form: str | None = None,
  impl: str | None = None,
) -> jax.Array:
  """Centres items among those of their row with the same id, and scales.

    A_i = (x_i - mean_s) / (std_s + eps),  s = {j : m_j and ids_j = ids_i}

  For segments that no reshape gives: the steps of several completions of one
  prompt that start from the same state. Ids of different rows never meet.
  Equals group_normalize where all ids of a row are equal; 0 where all differ.

  Work and memory: "equality" compares all pairs, K^2 a row, and XLA keeps no
  [B, K, K]; "one_hot" multiplies with a matrix [K, S] that is made in chunks,
  K S a row. With form None the second is taken for more than 1024 items if
  num_segments, below K, is given.

  The variance takes two passes: of 512 items of mean 100 and std 1 in 40
  segments the largest error of A is 3e-7, where the sum of squares minus the
  square of the mean leaves 2e-2 (float32, eps 1e-6).

  Args:
    x: [B, K], any float dtype; computed in float32 (float64 stays).
    ids: [B, K] integers, negative ones too.
    mask: [B, K]; an item counts where it is true, None counts all. What does
      not count may hold anything.
    center: "mean" or "leave_one_out".
    scale: "std" or None.
    eps: positive, added to the std, in units of x.
    ddof: 1 divides the variance by one less than the items, 0 by the items.
    num_segments: S, if all ids are in [0, S) (see compact_ids); an item whose
      id is not does not count. None: any ids.
    form: "equality", "one_hot" (needs num_segments), or None to pick by size.
    impl: see dispatch.py; None follows JAXRL_KERNELS.

  Returns:
    [B, K] float32, or float64, summing to 0 over each segment; exactly 0
    where its values are all equal and where the mask is false.

  Raises:
    ValueError: for shapes that do not fit, or an option that is not offered.
    TypeError: if ids are not integers.
  """
  knobs = {"center": center, "scale": scale, "eps": eps, "ddof": ddof}
  moments.check(scales=("std", None), **knobs)
  found, _ = _segments(x, ids, mask, num_segments, form, impl)
  return moments.normalized(found, **knobs)


def compact_ids(ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Numbers the distinct ids of each row 0, 1, ... in their order.

  Makes ids of any value (hashes of states) fit for num_segments; two sorts of
  K a row. Not differentiable.

  Args:
    ids: [B, K] integers.
    mask: [B, K]; what does not count takes no number. None counts all.

  Returns:
    [B, K] int32: the rank of the id among the distinct ones of its row, -1
    where the mask is false.
  """
  mask = _checked_mask(ids, ids, mask)
  places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
  _, ordered, order = jax.lax.sort((~mask, ids, places), num_keys=2)
  new = jnp.diff(ordered, axis=1) != 0
  ranks = jnp.cumsum(new, axis=1, dtype=jnp.int32)
  ranks = jnp.pad(ranks, ((0, 0), (1, 0)))
  _, ranks = jax.lax.sort((order, ranks), num_keys=1)
  return jnp.where(mask, ranks, -1)


def _segments(x, ids, mask, num_segments, form, impl):
  """Moments of each item's segment, and which items count."""
  mask = _checked_mask(x, ids, mask)
  form = _form(x.shape[1], num_segments, form)
  if num_segments is not None:
    mask &= (ids >= 0) & (ids < num_segments)
  width = num_segments if form == "one_hot" else None
  found = dispatch.call(
    "group_stats",
    impl,
    *(x, ids, mask),
    xla=lambda *args: xla.segments(*args, num_segments=width),
    reference=reference.segments,
  )
  return found, mask


def _form(items, num_segments, form):
  if form not in (*FORMS, None):
    raise ValueError(f"form is one of {FORMS} or None, got {form!r}.")
  if num_segments is None and form == "one_hot":
    raise ValueError("form 'one_hot' needs num_segments, got None.")
  if num_segments is not None and num_segments < 1:
    raise ValueError(f"num_segments must be at least 1, got {num_segments}.")
  if form is None and num_segments is not None:
    form = "one_hot" if items > max(_EQUALITY_ITEMS, num_segments) else None
  return form or "equality"


def _checked_mask(x, ids, mask):
  if x.ndim != 2 or ids.shape != x.shape:
    raise ValueError(
      f"segments need x and ids of one shape [B, K], got {x.shape} and"
      f" {ids.shape}."
    )
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"ids must be integers, got {ids.dtype}.")
  if mask is None:
    return jnp.ones(x.shape, bool)
  if mask.shape != x.shape:
    raise ValueError(f"mask must be [B, K] {x.shape}, got {mask.shape}.")
  return mask.astype(bool)
