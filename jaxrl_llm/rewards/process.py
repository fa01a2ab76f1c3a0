"""The parent's end of one scoring process.

A fresh interpreter, as in multiprocessing's "spawn", except that the parent's
main module is not imported again: a training script would bring jax and an
accelerator with it.
"""

from collections import deque
from collections.abc import Sequence
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import Any

# Seconds for importing what the rewards need, torch for instance.
STARTUP = 120.0

_CODE = """
import sys
from multiprocessing import connection
parent = connection.Connection(int(sys.argv[1]))
sys.path[:] = parent.recv()
from jaxrl_llm.rewards import worker
worker.main(parent)
"""

# A worker is one thread, and never takes the accelerator from the trainer.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
}


class Process:
  """One scoring process and the rows it has not answered yet.

  Attributes:
    rows: indices of the assigned rows, in the order of their answers.
    deadline: time.monotonic() at which the next message is overdue.
    connection: to the process, None before start and after kill.
    names: rewards it scores with.
  """

  def __init__(self, names: Sequence[str], timeout: float):
    """Describes a process; start() runs it.

    Args:
      names: rewards; see registry.
      timeout: seconds for one row.
    """
    self.rows: deque[int] = deque()
    self.deadline = float("inf")
    self.connection = None
    self._ready = False
    self.names = tuple(names)
    self._timeout = timeout
    self._folder = os.getcwd()
    self._child: subprocess.Popen | None = None

  @property
  def idle(self) -> bool:
    """Whether it waits for rows."""
    return self._ready and not self.rows

  @property
  def gone(self) -> bool:
    """Whether it was never started, was killed, or ended while it was idle."""
    if self._child is None:
      return True
    return self.idle and self._child.poll() is not None

  @property
  def waited_for(self) -> bool:
    """Whether a message should come from it."""
    return self.connection is not None and not self.idle

  def start(self, *, tries: bool = False) -> None:
    """Starts the process; it answers "loaded", then "ready".

    Args:
      tries: whether it calls users' functions once before it is ready.
    """
    ours, theirs = multiprocessing.Pipe()
    with theirs:
      self._child = subprocess.Popen(
        [sys.executable, "-c", _CODE, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a reward prints is no output of the run
        cwd=self._folder,
        env=os.environ | _ENVIRONMENT,
        start_new_session=True,  # Ctrl-C in the terminal is the parent's
      )
    self.connection, self._ready = ours, False
    self.deadline = time.monotonic() + STARTUP
    self._send(sys.path)
    self._send((self.names, self._timeout, STARTUP, tries))

  def assign(self, rows: Sequence[tuple[int, str, str, Any]]) -> None:
    """Sends rows to an idle process."""
    self.rows.extend(index for index, *_ in rows)
    self.deadline = time.monotonic() + self._timeout
    self._send(rows)

  def receive(self) -> Any:
    """Next message: (index, worker.Row), "loaded" or "ready".

    Raises:
      EOFError: the process is gone.
      Exception: what loading the rewards raised.
    """
    try:
      message = self.connection.recv()
    except ConnectionError:
      raise EOFError from None
    if isinstance(message, Exception):
      raise message
    if message == "ready":
      self._ready = True
    elif message != "loaded":
      self.rows.remove(message[0])
    self.deadline = time.monotonic() + self._timeout
    return message

  def exit_text(self) -> str:
    """How the process ended; waits for a moment until it has."""
    try:
      code = self._child.wait(1.0)
    except subprocess.TimeoutExpired:
      return "closed its connection"
    if code >= 0:
      return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"

  def kill(self) -> None:
    """Ends the process and what it started, now; forgets its rows."""
    if self._child is not None:
      try:
        os.killpg(self._child.pid, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass
      self._child.kill()
      self._child.wait()
      self.connection.close()
    self._child = self.connection = None
    self._ready = False
    self.rows.clear()

  def _send(self, message: Any) -> None:
    """Sends; a process that is gone is noticed at the next receive."""
    try:
      self.connection.send(message)
    except ConnectionError:
      pass
