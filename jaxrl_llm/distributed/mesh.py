"""Data parallelism over the local devices: rows cut, parameters everywhere."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def data_mesh(
  rows: int, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
  """A one-axis mesh "data" over as many devices as divide `rows`.

  Args:
    rows: number of prompts in a step; groups are never cut.
    devices: those that may be used; None means all.

  Returns:
    The mesh, or None when one device is all that can be used.
  """
  devices = list(devices or jax.devices())
  count = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
  if count == 1:
    return None
  return Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
  """Puts host arrays on the mesh: axis 0 cut, scalars everywhere.

  Rows that the devices cannot share evenly (an evaluation's batch) are put
  whole on each: slower, never wrong.
  """

  def place(leaf):
    even = np.ndim(leaf) and leaf.shape[0] % mesh.size == 0
    spec = PartitionSpec("data") if even else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  if mesh is None:
    return replicate(tree, None)
  return jax.tree.map(place, tree)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
  """Puts every leaf whole on each device of the mesh.

  Always a committed placement, also on one device: the outputs of a compiled
  step are committed, and jit would trace a second time for the difference.
  """
  if mesh is None:
    return jax.device_put(tree, jax.devices()[0])
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
