"""Puts tensors from a file into the parameter tree, shard by shard.

Each device's part of a leaf is read on its own and handed over before the next
one is read, so the host holds one part at a time. Devices that hold the same
part share one reading.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrl_llm.models import api, families

# read(path, layer or None, index within the layer) -> array, [in, out].
ReadFn = Callable[[str, int | None, tuple[slice, ...]], np.ndarray]


def shapes(config: api.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Path in the tree ("layers/attention/q") -> shape, [depth] included."""
  tree = abstract(config)
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf.shape for path, leaf in leaves}


def path_name(path: tuple[Any, ...]) -> str:
  """The keys of a pytree path, joined by "/"."""
  return "/".join(part.key for part in path)


def assemble(
  config: api.ModelConfig,
  read: ReadFn,
  *,
  sharding: Any = None,
  dtype: np.typing.DTypeLike = np.float32,
) -> api.Params:
  """Fills the parameter tree of a config, leaf by leaf.

  Args:
    config: shape of the decoder.
    read: gives the part `index` of one leaf of one layer (None outside the
      stack), in our orientation; every slice has a start and a stop.
    sharding: one jax sharding for all leaves, a tree of them like the
      parameters, or a function of (config, shapes) that gives one of these;
      None means the first device.
    dtype: of the matrices; vectors are float32.

  Returns:
    The parameters.
  """
  tree = abstract(config, dtype)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf, place: _leaf(path_name(path), leaf, place, read),
    tree,
    places(config, tree, sharding),
  )


def places(config: api.ModelConfig, tree: Any, sharding: Any) -> Any:
  """A sharding for each leaf of `tree`, from what assemble() was given."""
  if callable(sharding) and not isinstance(sharding, jax.sharding.Sharding):
    sharding = sharding(config, tree)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  if isinstance(sharding, jax.sharding.Sharding):
    sharding = jax.tree.map(lambda _: sharding, tree)
  return sharding


def abstract(
  config: api.ModelConfig, dtype: np.typing.DTypeLike = np.float32
) -> Any:
  """Shapes of a config's parameters; `dtype` is that of the matrices."""
  model = families.build(config)

  def stored(path, leaf):
    matrix = leaf.ndim - path_name(path).startswith("layers/") > 1
    return leaf.update(dtype=dtype if matrix else leaf.dtype)

  tree = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(stored, tree)


def _leaf(name, leaf, sharding, read):
  devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
  places = sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in places.items():
    spans = zip(index, leaf.shape, strict=True)
    key = tuple(span.indices(size)[:2] for span, size in spans)
    devices.setdefault(key, []).append(device)
  arrays = []
  for key, holders in devices.items():
    part = _part(name, tuple(slice(*span) for span in key), read, leaf.dtype)
    # Waiting frees the host's part before the next one is read.
    arrays += jax.block_until_ready(
      [jax.device_put(part, device) for device in holders]
    )
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _part(name, spans, read, dtype):
  if not name.startswith("layers/"):
    return np.ascontiguousarray(read(name, None, spans), dtype)
  shape = tuple(span.stop - span.start for span in spans)
  out = np.empty(shape, dtype)
  for row, layer in enumerate(range(spans[0].start, spans[0].stop)):
    out[row] = read(name, layer, spans[1:])
  return out
