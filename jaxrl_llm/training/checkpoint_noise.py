"""A failed read or write is told of once, in one line, by checkpoint.py.

Orbax and the libraries below it log it too, and what else was being read or
written ends later and would print tracebacks of an event loop that is closed.
"""

from collections.abc import Callable
import logging
import sys
from typing import Any

_LOGGERS = ("orbax", "absl", "asyncio")
_LEFT = ("Event loop is closed", "Encountered error while reading array")


class _Hook:
  """Lets through what is not left over from a failed read or write."""

  def __init__(self, before: Callable[[Any], None]):
    self._before = before

  def __call__(self, unraisable) -> None:
    if not str(unraisable.exc_value).startswith(_LEFT):
      self._before(unraisable)


def keep_down() -> None:
  """For the rest of the process; a second call does nothing."""
  for name in _LOGGERS:
    logging.getLogger(name).setLevel(logging.CRITICAL)
  if not isinstance(sys.unraisablehook, _Hook):
    sys.unraisablehook = _Hook(sys.unraisablehook)
