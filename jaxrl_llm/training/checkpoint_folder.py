"""What lies in a folder of checkpoints, whole or not, and how much room is.

120/                             a complete step
125.orbax-checkpoint-tmp/        half-written: under way, or left by a kill
115.damaged/                     was found damaged and put aside
"""

from collections.abc import Iterable
import contextlib
import pathlib
import shutil


def steps(folder: pathlib.Path) -> list[int]:
  """The steps that were completed, in no order; [] without a folder."""
  if not folder.is_dir():
    return []
  return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def sweep(folder: pathlib.Path) -> None:
  """Removes what is half-written."""
  for path in _half_written(folder):
    shutil.rmtree(path, ignore_errors=True)


def half_written(folder: pathlib.Path) -> int:
  """Bytes of what is half-written."""
  total = 0
  for path in _half_written(folder):
    for file in path.rglob("*"):
      with contextlib.suppress(OSError):  # renamed meanwhile
        total += file.stat().st_size
  return total


def tidy(folder: pathlib.Path, damaged: Iterable[int]) -> None:
  """Removes what is half-written, and puts aside the damaged steps."""
  sweep(folder)
  for step in damaged:
    _put_aside(folder / f"{step}")


def free(folder: pathlib.Path) -> int:
  """Bytes that are free where the folder is, or will be."""
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free


def human(count: float) -> str:
  """A number of bytes as a person reads it: "1.5 GiB"."""
  if count < 1024:
    return f"{count:.0f} bytes"
  for unit in ("KiB", "MiB"):
    count /= 1024
    if count < 1024:
      return f"{count:.1f} {unit}"
  return f"{count / 1024:.1f} GiB"


def _half_written(folder: pathlib.Path) -> list[pathlib.Path]:
  return list(folder.glob("*.orbax-checkpoint-tmp*"))


def _put_aside(path: pathlib.Path) -> None:
  """Renames a step to a name that is not taken for one."""
  number, free_name = 1, path.with_name(f"{path.name}.damaged")
  while free_name.exists():
    number += 1
    free_name = path.with_name(f"{path.name}.damaged.{number}")
  path.rename(free_name)
