"""Large memory pages for a process that computes on the CPU.

XLA asks the C library for its temporary arrays at every step, a gigabyte for a
small model, and gives them back. The kernel zeroes them anew each time, page by
page; large pages make that cheaper when the kernel has them to give.
"""

import os
import sys

_NAME = "GLIBC_TUNABLES"
_VALUE = "glibc.malloc.hugetlb=1"


def use_large_pages() -> None:
  """Starts this program again with large pages; on Linux, once.

  The C library reads the setting only when a process starts. Nothing happens
  where GLIBC_TUNABLES is set already, also to the empty string.
  """
  if not sys.platform.startswith("linux") or _NAME in os.environ:
    return
  os.environ[_NAME] = _VALUE
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
