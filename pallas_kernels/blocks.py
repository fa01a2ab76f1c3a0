"""Tiles of the Pallas TPU kernels: what a chip's VMEM holds, and refusals.

A tile that does not fit fails deep in the compiler, so the arithmetic is done
here first and the numbers go into the message. VMEM is per core.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

_MIB = 2**20
_SHARE = 0.93  # of VMEM; the rest is the compiler's own
_CEILING = 100 * _MIB

LANES = 128

T = TypeVar("T")


class Unsupported(ValueError):
  """A kernel does not take these arguments; says which, and what would do."""


class Chip(NamedTuple):
  """What the kernels need to know of a TPU generation.

  Attributes:
    name: the short name, "v5e".
    kinds: the names that JAX gives its devices.
    topology: the smallest topology that the compiler knows, for compiling
      without the chip.
    vmem_mib: VMEM of one core.
    hbm_gib: memory that a program may have on one device, as the compiler
      states it when it refuses one that needs more.
    devices: that JAX counts in one chip.
  """

  name: str
  kinds: tuple[str, ...]
  topology: str
  vmem_mib: int
  hbm_gib: float
  devices: int = 1

  @property
  def vmem_bytes(self) -> int:
    """VMEM of one core."""
    return self.vmem_mib * _MIB

  @property
  def hbm_bytes(self) -> int:
    """Memory that a program may have on one device."""
    return int(self.hbm_gib * 2**30)

  @property
  def limit(self) -> int:
    """Bytes of VMEM that one kernel may ask for."""
    return min(_CEILING, int(_SHARE * self.vmem_bytes))


_CHIPS = (
  Chip("v4", ("TPU v4",), "v4:2x2x1", 16, 15.25, 2),
  Chip("v5e", ("TPU v5 lite", "TPU v5e"), "v5e:2x2", 128, 15.75),
  Chip("v5p", ("TPU v5", "TPU v5p"), "v5p:2x2x1", 64, 95.73),
  Chip("v6e", ("TPU v6 lite", "TPU v6e"), "v6e:2x2", 128, 31.24),
  Chip("v7x", ("TPU7x", "TPU7", "TPU v7x"), "tpu7x:2x2x1", 64, 94.74, 2),
)
CHIPS = {chip.name: chip for chip in _CHIPS}


def chip(kind: str | None) -> Chip:
  """The chip of a JAX device kind or short name; the smallest if unknown.

  Tiles chosen for the smallest VMEM are right, if not the fastest, on all.
  """
  for known in _CHIPS:
    if kind == known.name or kind in known.kinds:
      return known
  return min(_CHIPS, key=lambda known: known.vmem_bytes)


def first_that_fits(
  op: str,
  tiles: Iterable[T],
  vmem_bytes: Callable[[T], int],
  on: Chip,
) -> T:
  """The first of `tiles`, best first, whose VMEM a kernel on `on` may have.

  Raises:
    Unsupported: if none does; the message holds the bytes of the last one.
  """
  tile, needed = None, 0
  for tile in tiles:
    needed = vmem_bytes(tile)
    if needed <= on.limit:
      return tile
  raise Unsupported(_too_large(op, tile, needed, on))


def check_fits(op: str, tile: object, needed: int, on: Chip) -> None:
  """Raises Unsupported if a tile that somebody chose needs too much VMEM."""
  if needed > on.limit:
    raise Unsupported(_too_large(op, tile, needed, on))


def _too_large(op, tile, needed, on):
  return (
    f"{op}: the tile {tile} needs {needed / _MIB:.1f} MiB of VMEM and a"
    f" kernel on {on.name} may have {on.limit / _MIB:.1f} MiB; use a smaller"
    " tile, or impl='xla'."
  )
