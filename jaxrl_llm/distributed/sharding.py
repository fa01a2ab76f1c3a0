"""Names for the axes of parameters and activations, and what cuts them.

Every parameter has logical axes by its name (PARAMETERS); RULES says which
mesh axis cuts a logical axis. Both are plain data: another layout is another
dictionary. An axis that its mesh axis does not divide stays whole.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import api

Rules = Mapping[str, str | tuple[str, ...] | None]

PARAMETERS = {
  "embed": ("vocab", "width"),
  "head": ("vocab", "width"),
  "q": ("width", "heads"),
  "k": ("width", "kv_heads"),
  "v": ("width", "kv_heads"),
  "q_bias": ("heads",),
  "k_bias": ("kv_heads",),
  "v_bias": ("kv_heads",),
  "o": ("heads", "width"),
  "gate": ("width", "mlp"),
  "up": ("width", "mlp"),
  "down": ("mlp", "width"),
  "project": ("width", None),
}
RULES: Rules = {
  "rows": meshes.ROWS,
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "length": "tensor",
  "width": "fsdp",
}
# The sampler's: nothing is gathered for each token that is drawn.
ROLLOUT_RULES: Rules = {**RULES, "width": None}


def parameter_shardings(
  config: api.ModelConfig, params: Any, mesh: Mesh, rules: Rules = RULES
) -> Any:
  """A NamedSharding for each parameter.

  Args:
    config: of the model; heads are never cut in their middle.
    params: the tree, arrays or shapes; those below "layers" have a leading
      axis [depth], which is never cut.
    mesh: with the axes that the rules name.
    rules: {logical axis: mesh axis or axes, or None}.

  Raises:
    ValueError: for a matrix that PARAMETERS does not know.
  """
  units = {"heads": config.heads, "kv_heads": config.kv_heads}

  def place(path, leaf):
    keys = _keys(path)
    stacked = keys[0] == "layers"
    rank = len(leaf.shape) - stacked
    names = _axes(keys)
    if names is None and rank > 1:
      raise ValueError(
        f"the parameter {'/'.join(keys)} {leaf.shape} has no logical axes; add"
        f" {keys[-1]!r} to PARAMETERS in distributed/sharding.py."
      )
    names = names or (None,) * rank
    sizes = [
      units.get(name, size)
      for name, size in zip(names, leaf.shape[stacked:], strict=True)
    ]
    spec = partition(names, sizes, mesh, rules)
    return NamedSharding(mesh, PartitionSpec(*([None] * stacked), *spec))

  return jax.tree_util.tree_map_with_path(place, params)


def _axes(keys):
  """Of a parameter; of the parts of a LowRank too, whose rank stays whole."""
  if len(keys) > 1 and keys[-2] in PARAMETERS:
    inside, out = PARAMETERS[keys[-2]]
    parts = {"w": (inside, out), "a": (inside, None), "b": (None, out)}
    return parts.get(keys[-1])
  return PARAMETERS.get(keys[-1])


def partition(
  names: tuple[str | None, ...], sizes: Any, mesh: Any, rules: Rules = RULES
) -> PartitionSpec:
  """The mesh axes of an array whose axes have these names and sizes."""
  cuts = []
  for name, size in zip(names, sizes, strict=True):
    cut = rules.get(name)
    axes = (cut,) if isinstance(cut, str) else cut or ()
    shares = math.prod(mesh.shape[axis] for axis in axes)
    cuts.append(cut if shares > 1 and size % shares == 0 else None)
  return PartitionSpec(*cuts)


def like_parameters(tree: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of a tree that holds copies of the parameters, and more.

  A leaf whose path ends with the path of a parameter (Adam's moments, the
  parameters of a train state) is cut as the parameter; all others are whole.

  Args:
    tree: arrays or shapes.
    shardings: of the parameters.
    mesh: theirs.
  """
  known = {
    _keys(path): place
    for path, place in jax.tree_util.tree_leaves_with_path(shardings)
  }
  longest = max(map(len, known))
  whole = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    keys = _keys(path)
    for length in range(min(longest, len(keys)), 0, -1):
      found = known.get(keys[-length:])
      if found is not None and len(found.spec) <= len(leaf.shape):
        return found
    return whole

  return jax.tree_util.tree_map_with_path(place, tree)


def _keys(path):
  return tuple(str(getattr(p, "key", getattr(p, "name", p))) for p in path)


def constrain_parameters(config: api.ModelConfig, params: Any) -> Any:
  """Parameters as the sampler wants them: whole over "fsdp", all at once.

  Else each token that is drawn would gather every weight again.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return params
  places = parameter_shardings(config, params, mesh, ROLLOUT_RULES)
  return jax.tree.map(jax.lax.with_sharding_constraint, params, places)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Tells the compiler how the mesh in use cuts an activation, by name.

  Without a mesh, or inside shard_map, nothing happens.

  Args:
    x: any array.
    *names: a logical axis, or None, for each axis of x.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return x
  spec = partition(names, x.shape, mesh)
  return jax.lax.with_sharding_constraint(x, spec)


def by_rows(
  function: Callable[..., Any], *arrays: jax.Array, group_size: int = 1
) -> Any:
  """function(*arrays), on each device's own rows.

  For what goes through its rows one after another: left to the partitioner,
  the rows of all devices would be brought to each.

  Args:
    function: of arrays [N, ...], to such arrays; must treat every group of rows
      for itself. No gradient comes back.
    *arrays: [N, ...].
    group_size: rows that must stay together.
  """
  mesh = mesh_in_use()
  arrays = jax.lax.stop_gradient(arrays)
  if mesh is None:
    return function(*arrays)
  groups = arrays[0].shape[0] // group_size
  rows = partition(("rows",), (groups,), mesh)
  return jax.shard_map(
    function,
    in_specs=rows,
    out_specs=rows,
    check_vma=False,  # the decompositions do not say over what they vary
  )(*arrays)


def mesh_in_use() -> jax.sharding.AbstractMesh | None:
  """The mesh that is being traced for; None without, or inside shard_map."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.manual_axes or not set(meshes.AXES) <= set(mesh.shape):
    return None
  return mesh
