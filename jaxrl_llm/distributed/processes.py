"""One run in several processes, by JAX's distributed runtime.

Every process runs the same program on the same host arrays and holds its own
devices' part of everything else. Host work that is dear (decoding, rewards) is
divided; its results are gathered, so all processes decide alike. Only the main
process writes logs.

Each function here that needs the others must be called by all, in one order.
"""

from collections.abc import Callable
import contextlib
import os
import pickle
import sys
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from jaxrl_llm.distributed import cluster, guard

T = TypeVar("T")

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT = 30
# Seconds that a process waits for the others at its end.
_SHUTDOWN = 15
# Bytes of an array that are gathered at once, on every device.
_PIECE = 2**30
# Words of the runtime's errors when a peer is gone.
_GONE = (
  "gloo",
  "unavailable:",
  "deadline_exceeded",
  "coordination service",
  "connection reset by peer",
)


def initialize(given: cluster.Processes) -> None:
  """Joins the other processes; before anything else of JAX.

  Nothing happens for a process on its own. TPU pods (VM metadata, GKE), SLURM
  and Open MPI are found by jax.distributed.

  Raises:
    ValueError: if the fields do not go together or JAX knows no cluster.
    guard.Lost: if the others do not come within five minutes.
  """
  cluster.check(given)
  _give_threads(jax.config.jax_num_cpu_devices)
  if given.count == 1:
    return
  # A signal is agreed on between steps; the service would take SIGTERM first.
  jax.config.update("jax_enable_preemption_service", False)
  where = f" at {given.coordinator}" if given.coordinator else ""
  print(f"jaxrl: meeting the other processes{where}", file=sys.stderr)
  try:
    jax.distributed.initialize(
      coordinator_address=given.coordinator or None,
      num_processes=given.count or None,
      process_id=None if given.index < 0 else given.index,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except ValueError as error:  # of jax, where it finds no cluster
    raise ValueError(
      f"which processes share this run is not known ({_short(error)}); set"
      " --processes.coordinator HOST:PORT, --processes.count and"
      " --processes.index, or --processes.count 1 for a run on its own."
    ) from error
  except RuntimeError as error:
    raise guard.Lost(
      f"the processes of this run did not meet{where} ({_short(error)}): look"
      " whether all were started and reach that address, then start all again."
    ) from error


def _give_threads(devices: int) -> None:
  """Enough for several programs at once on fake CPU devices.

  The runtime has one thread a device. Two programs begun together can take
  them all, each waiting for a device that then has none.
  """
  if devices > 1:
    os.environ.setdefault("PJRT_NPROC", str(4 * devices))


def _short(error: Exception) -> str:
  return " ".join(str(error).split())[:200]


def count() -> int:
  """How many processes share the run."""
  return jax.process_count()


def is_main() -> bool:
  """Whether this process writes what there is one of."""
  return jax.process_index() == 0


def gather(value: T) -> list[T]:
  """What each process gave, by its number; anything that pickle takes."""
  if count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([data.size], np.int32))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    pickle.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes.ravel(), strict=True)
  ]


def divided(work: Callable[[slice], T], size: int) -> list[T]:
  """Does a share of `size` things in each process.

  Args:
    work: what to do with the things of a slice.
    size: how many there are; shares differ by one at most, and may be empty.

  Returns:
    The results of all processes, in the order of the things.
  """
  here = jax.process_index()
  bounds = [size * i // count() for i in (here, here + 1)]
  return gather(work(slice(*bounds)))


def on_main(function: Callable[[], T]) -> T:
  """What the main process got, in every one; its error is raised in all.

  For files: the others may see them later, or not at all.
  """
  outcome = None
  if is_main():
    try:
      outcome = function(), None
    except (ValueError, TypeError, OSError) as error:
      if count() == 1:
        raise
      outcome = None, error
  value, error = gather(outcome)[0]
  if error is not None:
    raise error
  return value


def to_host(tree: Any) -> Any:
  """Arrays of all processes' devices, whole, as numpy on each of them."""
  return jax.tree.map(_to_host, tree)


def _to_host(leaf: Any) -> np.ndarray:
  whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
  if whole or leaf.is_fully_replicated:
    return np.asarray(leaf)
  if leaf.nbytes > _PIECE and leaf.ndim > 1:
    return np.stack([_to_host(row) for row in leaf])
  return multihost_utils.process_allgather(leaf, tiled=True)


def put(leaf: Any, place: jax.sharding.Sharding) -> jax.Array:
  """A host array that all processes hold, on the devices of them all."""
  if place.is_fully_addressable:
    return jax.device_put(leaf, place)
  leaf = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, place, leaf.__getitem__)


def lost(error: BaseException) -> str | None:
  """One line if the error means that a process is gone, else None.

  The runtime raises ValueError as well as JaxRuntimeError, so its words decide.
  """
  if isinstance(error, guard.Lost):
    return str(error)
  text = str(error).lower()
  gone = any(word in text for word in _GONE)
  return (
    guard.lost_line() if gone and jax.distributed.is_initialized() else None
  )


def leave(code: int) -> None:
  """Ends this process: with the others if they end too, else without them."""
  if not jax.distributed.is_initialized():
    return
  sys.stdout.flush()
  sys.stderr.flush()
  if code != guard.LOST:
    # Where only this process ends, the others' end is not waited for long.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      jax.distributed.shutdown()
  os._exit(code)
