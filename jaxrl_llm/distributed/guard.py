"""Watches over one process of several: its end is one line and an exit code.

When a process of a run is lost, JAX's runtime aborts the others and dumps its
stack. So the work is done in a child. This process, which has imported nothing,
passes signals on, leaves the dump out and says what happened. It restarts
nothing: that is the launcher's part.
"""

from collections.abc import Mapping
import ctypes
import os
import re
import selectors
import signal
import sys

LOST = 3  # exit code where another process was lost

_FATAL = (
  b"JAX distributed service detected fatal errors",
  b"Polled an error from coordination service",
  b"Shutdown barrier in coordination service has failed",
)
_NOISE = re.compile(rb"\[Gloo\] Rank \d+ is connected to ")
_TASK = re.compile(rb"task:(\d+)")
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


class Lost(Exception):
  """Another process is gone, or never came; the message is one line."""


def watch() -> int | None:
  """Goes on in a child, and returns None there; its exit code in the parent.

  The child dies with its parent, whatever ends that. What goes to a terminal is
  left alone, what goes elsewhere loses the runtime's dump.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  pipes = {fd: os.pipe() for fd in (1, 2) if not os.isatty(fd)}
  parent = os.getpid()
  child = os.fork()
  if child:
    for _, end in pipes.values():
      os.close(end)
    return _Parent(
      child, {start: fd for fd, (start, _) in pipes.items()}
    ).wait()
  # A group of its own: Ctrl-C reaches it through the parent, once.
  os.setpgid(0, 0)
  if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(128 + signal.SIGKILL)
  for fd, (start, end) in pipes.items():
    os.close(start)
    os.dup2(end, fd)
    os.close(end)
  return None


class _Parent:
  """Passes signals to the child, and what it writes to where it belongs."""

  def __init__(self, child: int, outputs: Mapping[int, int]):
    self._child, self._outputs = child, outputs
    self._rest = dict.fromkeys(outputs, b"")
    self._fatal = b""
    for number in _PASSED_ON:
      signal.signal(number, self._pass_on)

  def _pass_on(self, number, frame):
    del frame
    try:
      os.kill(self._child, number)
    except ProcessLookupError:
      pass  # it has just ended

  def wait(self) -> int:
    """The child's exit code, or LOST when it ended with another process."""
    with selectors.DefaultSelector() as selector:
      for start in self._outputs:
        os.set_blocking(start, False)
        selector.register(start, selectors.EVENT_READ)
      status = None
      while status is None:
        for key, _ in selector.select(timeout=0.2):
          if not self._read(key.fd):
            selector.unregister(key.fd)
        ended, found = os.waitpid(self._child, os.WNOHANG)
        status = found if ended else None
    for start in self._outputs:
      self._read(start)
      self._write(start, self._rest[start])
    code = os.waitstatus_to_exitcode(status)
    if self._fatal and code < 0:
      print(f"jaxrl: {lost_line(self._fatal)}", file=sys.stderr, flush=True)
      return LOST
    return code if code >= 0 else 128 - code

  def _read(self, start: int) -> bool:
    """Passes on the whole lines that are there; False at the end."""
    try:
      while data := os.read(start, 1 << 16):
        *lines, self._rest[start] = (self._rest[start] + data).split(b"\n")
        for line in lines:
          self._write(start, line + b"\n")
    except BlockingIOError:
      return True
    return False

  def _write(self, start: int, line: bytes) -> None:
    if any(text in line for text in _FATAL):
      self._fatal += line
    ours = line.startswith(b"jaxrl: ")  # it may come amid the dump
    if line and (ours or not self._fatal) and not _NOISE.match(line):
      os.write(self._outputs[start], line)


def lost_line(reason: bytes = b"") -> str:
  """What a person should know and do when a process is lost.

  Args:
    reason: of the runtime; processes that it names are named.
  """
  tasks = sorted({int(number) for number in _TASK.findall(reason)})
  which = ", ".join(map(str, tasks))
  return (
    f"{f'process {which}' if which else 'another process'} of this run was"
    " lost (killed, crashed or out of reach), so this one ends; what was"
    " saved is whole: start all of them again with --resume."
  )
