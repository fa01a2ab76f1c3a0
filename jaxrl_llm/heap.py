"""Memory that a process computing on the CPU keeps between steps.

XLA asks the C library for its temporary arrays at every step, a gigabyte for a
small model, and gives them back; the kernel then zeroes them page by page each
time, which took up to a third of a step. With the settings below the C library
keeps what it has freed, in large pages where the kernel has them. The peak is
the same.
"""

import os
import sys

_NAME = "GLIBC_TUNABLES"
_SETTINGS = {
  "hugetlb": 1,
  "arena_max": 1,
  "mmap_max": 0,
  "trim_threshold": 2**40,
}


def keep_memory() -> None:
  """Starts this program again with the settings; on Linux, once.

  The C library reads them only when a process starts. Nothing happens where
  GLIBC_TUNABLES is set already, also to the empty string.
  """
  if not sys.platform.startswith("linux") or _NAME in os.environ:
    return
  os.environ[_NAME] = ":".join(
    f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items()
  )
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
