"""Which devices share what: the axes data, fsdp and tensor.

  data    rows (prompts with their groups) are cut, parameters are whole
  fsdp    rows are cut, and parameters and optimizer state too
  tensor  heads, MLPs and the vocabulary are cut, rows are whole

A mesh of one device is None: nothing is placed and nothing is constrained.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
import numpy as np

from jaxrl_llm.distributed import processes
from pallas_kernels import blocks

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
_FILLED = 0.7  # of a device's memory by parameters and optimizer state


def make_mesh(
  prompts: int,
  *,
  data: int = 0,
  fsdp: int = 0,
  tensor: int = 1,
  state_bytes: int = 0,
  devices: Sequence[jax.Device] | int | None = None,
  memory: int = 0,
) -> Mesh | AbstractMesh | None:
  """A mesh over as many devices as the batch can use.

  Args:
    prompts: B of a step; data * fsdp divides it, since groups are never cut.
    data: devices along "data"; 0 takes what is left.
    fsdp: devices along "fsdp"; 0 takes what is left where `data` is given,
      else the fewest that hold `state_bytes`, 1 if their memory is not known.
    tensor: devices along "tensor".
    state_bytes: parameters, gradients and optimizer state, in all.
    devices: those that may be used; None means all. Those of several slices
      are laid so that only "data" crosses between slices. A number stands for
      as many that are not here.
    memory: bytes of one device that is a mere number, 0 if not known; others
      are asked.

  Returns:
    The mesh, or None when one device is all that is used. An AbstractMesh
    where `devices` is a number.

  Raises:
    ValueError: if the devices or the prompts do not suffice; one line.
  """
  if devices is None:
    devices = jax.devices()
  absent = isinstance(devices, int)
  count = devices if absent else len(devices)
  if not absent:
    memory = device_bytes(devices[0])
  for name, size in (("data", data), ("fsdp", fsdp)):
    if size < 0:
      raise ValueError(
        f"mesh.{name} must be 0 (automatic) or more, got {size}."
      )
  if tensor < 1:
    raise ValueError(f"mesh.tensor must be at least 1, got {tensor}.")
  room = count // tensor
  shares = [n for n in range(1, room + 1) if prompts % n == 0]
  if data and fsdp:
    shares = [n for n in shares if n == data * fsdp]
  elif data or fsdp:
    shares = [n for n in shares if n % (data or fsdp) == 0]
  if not shares:
    raise ValueError(_impossible(prompts, data, fsdp, tensor, count))
  rows = max(shares)
  if not fsdp:
    fsdp = rows // data if data else _fewest(rows, tensor, state_bytes, memory)
  shape = (rows // fsdp, fsdp, tensor)
  used = math.prod(shape)
  if not absent:
    _check_processes(devices[:used], devices, prompts)
  if used == 1:
    return None
  types = (AxisType.Auto,) * len(AXES)
  if absent:
    return AbstractMesh(shape, AXES, axis_types=types)
  return Mesh(_layout(shape, devices[:used]), AXES, axis_types=types)


def split_off(
  devices: Sequence[jax.Device] | int,
  count: int,
  *,
  prompts: int,
  tensor: int,
) -> tuple[Sequence[jax.Device] | int, Mesh | AbstractMesh]:
  """Sets devices apart for a sampler: the last `count`.

  Args:
    devices: all, or the number of as many that are not here.
    count: for the sampler; a multiple of `tensor`.
    prompts: B; the sampler's copies of the parameters share them evenly.
    tensor: devices that share one copy.

  Returns:
    The others, and a mesh of those set apart, be it of one device.

  Raises:
    ValueError: if they do not go with each other; one line.
  """
  absent = isinstance(devices, int)
  others = (devices if absent else len(devices)) - count
  if others < 1:
    raise ValueError(
      f"mesh.rollout must leave a device to train on, got {count} of"
      f" {others + count}."
    )
  if count % tensor or prompts % (count // tensor):
    raise ValueError(
      f"mesh.rollout must be a multiple of mesh.tensor = {tensor} that shares"
      f" prompts_per_step = {prompts} evenly, got {count}."
    )
  shape = (count // tensor, 1, tensor)
  types = (AxisType.Auto,) * len(AXES)
  if absent:
    return others, AbstractMesh(shape, AXES, axis_types=types)
  own = _layout(shape, devices[others:])
  return devices[:others], Mesh(own, AXES, axis_types=types)


def _impossible(prompts, data, fsdp, tensor, count):
  return (
    f"mesh data={data or 'auto'} fsdp={fsdp or 'auto'} tensor={tensor} does"
    f" not go with {count} devices and prompts_per_step={prompts}: data * fsdp"
    " must divide prompts_per_step, and data * fsdp * tensor be at most the"
    " number of devices."
  )


def _check_processes(used, devices, prompts):
  """Raises ValueError if a process would have nothing to do."""
  here, there = ({d.process_index for d in each} for each in (used, devices))
  if here != there:
    raise ValueError(
      f"prompts_per_step={prompts} gives work to {len(used)} of"
      f" {len(devices)} devices and to {len(here)} of {len(there)} processes;"
      f" let it be a multiple of {len(devices)} (over mesh.tensor), or start"
      " fewer processes."
    )


def _fewest(rows, tensor, state_bytes, memory):
  """The smallest fsdp that leaves room on each device for a step."""
  if not memory:
    return 1
  fits = [
    n
    for n in range(1, rows + 1)
    if rows % n == 0 and state_bytes / (n * tensor) <= _FILLED * memory
  ]
  return fits[0] if fits else rows


def device_bytes(device: jax.Device) -> int:
  """Memory of an accelerator; 0 where it is the host's or not known.

  An absent device of a topology has no statistics: its chip says, so that a
  plan chooses the mesh that a run would.
  """
  if device.platform == "cpu":
    return 0
  try:
    return int((device.memory_stats() or {}).get("bytes_limit", 0))
  except (jax.errors.JaxRuntimeError, NotImplementedError, AttributeError):
    chips = blocks.CHIPS.values()
    kind = device.device_kind
    return next((chip.hbm_bytes for chip in chips if kind in chip.kinds), 0)


def _layout(shape, devices):
  """Devices by their network: slices along "data", neighbours elsewhere."""
  if devices[0].platform != "tpu":
    return np.array(devices).reshape(shape)
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices > 1 and shape[0] % slices == 0:
    return mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, *shape[1:]),
      (slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  return mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )


def traced_for(mesh: Mesh | None, function: Callable) -> Callable:
  """The function, traced where sharding.constrain knows the mesh."""
  if mesh is None:
    return function

  @functools.wraps(function)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def row_shares(mesh: Mesh | None) -> int:
  """Pieces that a batch's rows are cut into."""
  return math.prod(mesh.shape[axis] for axis in ROWS) if mesh else 1


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
  """Puts host arrays on the mesh: axis 0 cut, scalars everywhere.

  Rows that the devices cannot share evenly (an evaluation's batch) are put
  whole on each: slower, never wrong.
  """
  shares = row_shares(mesh)

  def place(leaf):
    even = np.ndim(leaf) and leaf.shape[0] % shares == 0
    spec = PartitionSpec(ROWS) if even else PartitionSpec()
    return processes.put(leaf, NamedSharding(mesh, spec))

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
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: processes.put(leaf, whole), tree)
