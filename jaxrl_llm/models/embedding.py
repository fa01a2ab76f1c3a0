"""Looks tokens up in the embedding, which meshes cut by the vocabulary."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxrl_llm.distributed import sharding

_TENSOR = sharding.RULES["vocab"]


def lookup(
  table: Float[Array, "V D"], tokens: Int[Array, "R L"]
) -> Float[Array, "R L D"]:
  """Rows of the table; an id out of range stands for the nearest one.

  On a mesh each device looks up its own rows in its own part of the table.
  Left to the partitioner, the gradient of the table would first bring the rows
  of all devices to each of them (10 GiB a device for Qwen3-32B).

  Args:
    table: of any float dtype.
    tokens: ids; those on padding may be anything.
  """
  mesh = sharding.mesh_in_use()
  vocab = table.shape[0]
  # "clip": what stands on padding must stay finite.
  tokens = jnp.clip(tokens, 0, vocab - 1)
  if mesh is None:
    return jnp.take(table, tokens, axis=0, mode="clip")
  rows = sharding.partition(("rows", None), tokens.shape, mesh)
  table = jnp.pad(table, ((0, -vocab % mesh.shape[_TENSOR]), (0, 0)))

  def local(part, tokens):
    here = tokens - jax.lax.axis_index(_TENSOR) * part.shape[0]
    mine = (here >= 0) & (here < part.shape[0])
    found = jnp.take(part, jnp.where(mine, here, 0), axis=0, mode="clip")
    found = jnp.where(mine[..., None], found, 0)
    return jax.lax.psum(found, _TENSOR)

  return jax.shard_map(
    local,
    in_specs=(PartitionSpec(_TENSOR, None), rows),
    out_specs=PartitionSpec(*rows, None),
  )(table, tokens)
