"""Which processes share a run: what was typed, and what a cluster says.

Known before JAX is imported, and without it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import glob
import importlib.util
import os

_RANKS = {
  "SLURM_PROCID": "SLURM_NTASKS",
  "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
}
_CHIPS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
  """How the processes of a run find each other; empty: from the cluster."""

  coordinator: str = ""
  """HOST:PORT of process 0, the same for all; the port must be free there"""
  count: int = 0
  """processes of the run; 1: this one alone, whatever the cluster says"""
  index: int = -1
  """number of this process, from 0"""


def check(given: Processes) -> None:
  """Raises ValueError, one line, for the first field that cannot be."""
  if given.count < 0:
    raise ValueError(
      "processes.count must be 0 (the cluster knows) or more, got"
      f" {given.count}."
    )
  if given.count and given.index >= given.count:
    raise ValueError(
      "processes.index must be from 0 to processes.count - 1 ="
      f" {given.count - 1}, got {given.index}."
    )
  host, _, port = given.coordinator.rpartition(":")
  if given.coordinator and not (host and port.isdigit()):
    raise ValueError(
      "processes.coordinator must be HOST:PORT, for example 10.0.0.1:8476;"
      f" got {given.coordinator!r}."
    )
  known = [bool(given.coordinator), given.count > 1, given.index >= 0]
  if given.count != 1 and any(known) and not all(known):
    raise ValueError(
      "processes.coordinator, processes.count and processes.index go"
      f" together, got {given.coordinator!r}, {given.count} and"
      f" {given.index}; give all three, or none on a cluster that JAX knows."
    )


def typed_count(args: Sequence[str]) -> int:
  """The --processes.count of a command line; 0 if it has none."""
  values = [0]
  for i, arg in enumerate(args):
    name, equals, value = arg.partition("=")
    if name == "--processes.count":
      value = value if equals else "".join(args[i + 1 : i + 2])
      values.append(int(value) if value.isdigit() else 0)
  return values[-1]


def several(count: int, environment: Mapping[str, str] = os.environ) -> bool:
  """Whether this may be one process of several.

  True for a count above 1. With 0 the cluster decides: SLURM and Open MPI say
  how many tasks they started; on a machine with TPUs JAX must ask its metadata.

  Args:
    count: Processes.count.
    environment: of this process.
  """
  if count:
    return count > 1
  for rank, tasks in _RANKS.items():
    if rank in environment and environment.get(tasks, "1") != "1":
      return True
  chips = any(glob.glob(pattern) for pattern in _CHIPS)
  return chips and importlib.util.find_spec("libtpu") is not None
