"""Attention over whole rows: which form, and where on a mesh it runs.

Short rows attend through pallas_kernels.prefix_attention, which holds all
scores of a layer and reads each part of a row where it lies: it compiles
faster, and on a CPU it is faster. Long rows take flash_attention, whose memory
is linear in the length. The length decides, when a program is traced.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import api
from pallas_kernels import flash_attention

# Scores of one head of one row from which a row is long: 1024 x 1024 tokens.
LONG = 2**20

_ROWS = ("rows", None, "kv_heads", None)


def is_long(scores: int) -> bool:
  """Whether rows with so many scores a head take flash_attention."""
  return scores >= LONG


def long_rows(
  q: Float[Array, "R L H d"],
  k: Float[Array, "R L K d"],
  v: Float[Array, "R L K d"],
  segments: Bool[Array, "R L"] | Int[Array, "R L"],
  *,
  pattern: flash_attention.Pattern,
  scale: float,
  softcap: float | None = None,
  window: api.Window | None = None,
) -> Float[Array, "R L H d"]:
  """flash_attention, on each device's own rows and heads.

  Its kernels cannot be partitioned automatically, so on a mesh it runs in
  shard_map: rows are cut over "data" and "fsdp", heads over "tensor". A key
  head that several devices need is repeated; what does not divide stays whole.

  Args:
    q, k, v: with rotary positions applied.
    segments: true on real tokens; or integers, ids of sequences in a row.
    pattern: without its window.
    scale, softcap: see api.Cache.
    window: of this layer; None: no layer slides.
  """
  attend = functools.partial(
    _attend,
    pattern=pattern,
    window=window and window.width,
    scale=scale,
    softcap=softcap,
  )
  here = None if window is None else window.here
  return on_each_device(attend, q, k, v, segments, here=here)


def on_each_device(
  attend: Callable[..., jax.Array],
  q: Float[Array, "R L H d"],
  k: Float[Array, "R L K d"],
  v: Float[Array, "R L K d"],
  *by_row: jax.Array,
  here: Bool[Array, ""] | None,
) -> Float[Array, "R L H d"]:
  """attend(q, k, v, *by_row, here), on each device's own rows and heads.

  Args:
    attend: runs in shard_map if there is a mesh.
    q, k, v: as of long_rows.
    *by_row: arrays [R, ...].
    here: of api.Window.
  """
  mesh = sharding.mesh_in_use()
  if mesh is None:
    return attend(q, k, v, *by_row, here)
  k, v = (_for_each_device(x, q.shape[2], mesh) for x in (k, v))
  rows = sharding.partition(_ROWS, k.shape, mesh)
  others = [PartitionSpec(rows[0])] * len(by_row)
  return jax.shard_map(
    attend,
    in_specs=(rows, rows, rows, *others, PartitionSpec()),
    out_specs=rows,
    check_vma=False,  # splash attention does not say over what it varies
  )(q, k, v, *by_row, here)


def _attend(q, k, v, segments, here, *, pattern, window, **knobs):
  name = "mask" if segments.dtype == bool else "segment_ids"

  def within(window):
    return functools.partial(
      flash_attention.flash_attention,
      pattern=dataclasses.replace(pattern, window=window),
      **knobs,
    )

  if here is None:
    return within(window)(q, k, v, **{name: segments})
  return jax.lax.cond(
    here,
    lambda q, k, v, ids: within(window)(q, k, v, **{name: ids}),
    lambda q, k, v, ids: within(None)(q, k, v, **{name: ids}),
    *(q, k, v, segments),
  )


def _for_each_device(x, heads, mesh):
  """Key heads, repeated so that "tensor" cuts them if it can."""
  kv_heads = x.shape[2]
  cut = math.lcm(kv_heads, mesh.shape[sharding.RULES["kv_heads"]])
  return jnp.repeat(x, cut // kv_heads, axis=2) if heads % cut == 0 else x
