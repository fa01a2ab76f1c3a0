"""Compiles programs for TPUs that are not here, and says what they need.

Needs the package libtpu, which is the TPU's compiler and runs on any Linux
host; no TPU. What the compiler reports of memory is that of the executable.
"""

from collections.abc import Callable, Sequence
import contextlib
import glob
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from pallas_kernels import blocks

_MESH = "one"

# Else it asks a metadata server what it runs on, locks the machine to one
# process and complains on stderr that it knows neither its type nor its host.
_NO_TPU_HERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def available() -> bool:
  """Whether the compiler is installed."""
  return importlib.util.find_spec("libtpu") is not None


def quiet_without_tpu() -> None:
  """Keeps libtpu from complaining, where it is installed and no TPU is.

  For a program's start, before JAX looks for devices.
  """
  here = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  if available() and not here:
    for name, value in _NO_TPU_HERE.items():
      os.environ.setdefault(name, value)


def devices(topology: str) -> Sequence[jax.Device]:
  """Devices of an absent topology, "v5e:2x2" for instance.

  Raises:
    ModuleNotFoundError: if libtpu is not installed.
  """
  if not available():
    raise ModuleNotFoundError(
      "Compiling for a TPU that is not here needs the package libtpu, which is"
      " not installed; install libtpu (Linux only)."
    )
  with _environment(_NO_TPU_HERE):
    return topologies.get_topology_desc(
      platform="tpu", topology_name=topology
    ).devices


def lower_for(
  chip: str,
  function: Callable,
  *shapes: Any,
  donate_argnums: int | Sequence[int] = (),
) -> jax.stages.Lowered:
  """Lowers function(*shapes) for one device of an absent chip.

  Args:
    chip: a key of blocks.CHIPS.
    function: pure; jitted here. "auto" implementations see the chip.
    *shapes: pytrees of arrays or jax.ShapeDtypeStruct; no array is moved.
    donate_argnums: as in jax.jit.
  """
  if chip not in blocks.CHIPS:
    raise ValueError(f"chip is one of {tuple(blocks.CHIPS)}, got {chip!r}.")
  device = devices(blocks.CHIPS[chip].topology)[0]
  mesh = jax.sharding.Mesh([device], (_MESH,))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
  )
  jitted = jax.jit(function, donate_argnums=donate_argnums, out_shardings=place)
  with jax.set_mesh(mesh):
    return jitted.lower(*abstract)


def compile_for(
  chip: str,
  function: Callable,
  *shapes: Any,
  donate_argnums: int | Sequence[int] = (),
) -> jax.stages.Compiled:
  """Compiles function(*shapes) for one device of an absent chip.

  Arguments as in lower_for.

  Returns:
    The executable: ask its memory_analysis(), do not run it.
  """
  lowered = lower_for(chip, function, *shapes, donate_argnums=donate_argnums)
  return lowered.compile()


@contextlib.contextmanager
def _environment(defaults):
  """Variables that are not set, for a while."""
  missing = {k: v for k, v in defaults.items() if k not in os.environ}
  os.environ.update(missing)
  try:
    yield
  finally:
    for name in missing:
      del os.environ[name]
