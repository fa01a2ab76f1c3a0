"""Scores completions in processes: a bad row costs that row and nothing else.

Each process answers row by row, so a hang or a crash is charged to the one row
that was being scored; the process is replaced and its other rows are handed
out again.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing import connection as connections
import time
from typing import Any, Self
import weakref

from jaxrl_llm.rewards import process, registry, scored, worker

# Rows sent to a process at once, at most.
CHUNK = 64


class RewardPool:
  """Processes that score; use it in a `with` statement.

  A reward that returns {name: [N]} counts as the sum of its components, and
  each becomes a component under its own name. One that returns None for a
  completion does not apply to it: the others make up its reward.

  Attributes:
    labels: names of the rewards, for metrics: the first components.
    weights: factor of each.
  """

  def __init__(
    self,
    names: Sequence[str],
    *,
    weights: Sequence[float] = (),
    timeout: float = 10.0,
    workers: int = 2,
  ):
    """Checks the rewards and starts the processes.

    A user's function is imported and called once for trial, in a process (in
    this one when workers is 0), before the constructor returns.

    Args:
      names: rewards, see registry.REWARDS; at least one.
      weights: factor of each reward; empty: all 1.
      timeout: seconds for one completion, all rewards together.
      workers: processes; 0 scores in this process, without a timeout.

    Raises:
      ValueError, TypeError, FileNotFoundError, ModuleNotFoundError: one line
        about the first argument or reward that cannot be.
    """
    self._names = tuple(names)
    weights = _checked_weights(self._names, weights)
    _check_numbers(timeout, workers)
    for name in self._names:
      registry.check(name)
    self.labels = registry.labels(self._names)
    self.weights = weights
    self._assembly = scored.Assembly(self.labels, weights)
    self._processes = [
      process.Process(self._names, timeout) for _ in range(workers)
    ]
    self._close = weakref.finalize(self, _kill, self._processes)
    self._functions = None if workers else worker.load(self._names)
    if not workers:
      worker.trial(self._functions)
    try:
      self._start(timeout)
    except BaseException:
      self._close()
      raise

  def __enter__(self) -> Self:
    """The pool itself."""
    return self

  def __exit__(self, *exception: Any) -> None:
    """Ends the processes."""
    self.close()

  def close(self) -> None:
    """Ends the processes; also done at interpreter exit."""
    self._close()

  def score(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[Any],
  ) -> scored.Scored:
    """Scores N completions; what a reward does wrong is in the result.

    Args:
      prompts: [N] texts.
      completions: [N] texts.
      answers: [N], as the data source gave them.

    Raises:
      ValueError: the arguments differ in length.
      RuntimeError: the pool is closed.
    """
    if not len(prompts) == len(completions) == len(answers):
      raise ValueError(
        "prompts, completions and answers must have one length, got"
        f" {len(prompts)}, {len(completions)}, {len(answers)}."
      )
    if not self._close.alive:
      raise RuntimeError("this RewardPool is closed; make a new one.")
    texts = list(zip(prompts, completions, answers, strict=True))
    if self._functions is not None:
      rows = [worker.score_row(self._functions, *row) for row in texts]
    else:
      rows = self._dispatch(texts)
    return self._assembly(rows)

  def _start(self, timeout: float) -> None:
    """Starts all processes; the first tries users' functions."""
    if self._processes and any(map(registry.is_function, self._names)):
      _try_functions(self._processes[0], timeout)
    self._revive()

  def _revive(self) -> None:
    for each in self._processes:
      if each.gone:
        each.kill()
        each.start()

  def _dispatch(self, texts: Sequence[tuple]) -> list[worker.Row]:
    """Rows in order. What is in flight is dropped when an exception comes."""
    task = _Task(texts, len(self._processes))
    try:
      while task.open:
        self._revive()
        for each in self._processes:
          if each.idle and task.pending:
            each.assign(task.take())
        self._collect(task)
      self._revive()
    except BaseException:
      _kill(self._processes)
      raise
    return task.results

  def _collect(self, task: "_Task") -> None:
    """Waits for the next messages or the next deadline."""
    waiting = [each for each in self._processes if each.waited_for]
    left = min(each.deadline for each in waiting) - time.monotonic()
    heard = connections.wait(
      [each.connection for each in waiting], max(left, 0.0)
    )
    for each in waiting:
      if each.connection in heard:
        _read(each, task)
      elif time.monotonic() >= each.deadline:
        text = "took longer than the timeout; its process was replaced"
        _lose(each, task, worker.Failure("timeout", text))


class _Task:
  """Rows still to hand out, and results as they come."""

  def __init__(self, texts: Sequence[tuple], workers: int):
    self._texts = texts
    self._share = 2 * workers
    self.pending = deque(range(len(texts)))
    self.results: list[worker.Row | None] = [None] * len(texts)
    self._open = len(texts)

  @property
  def open(self) -> bool:
    return self._open > 0

  def take(self) -> list[tuple]:
    """Next rows: fewer and fewer, so that the processes end together."""
    count = min(CHUNK, max(1, len(self.pending) // self._share))
    indices = [self.pending.popleft() for _ in range(count)]
    return [(index, *self._texts[index]) for index in indices]

  def finish(self, index: int, row: worker.Row) -> None:
    self.results[index] = row
    self._open -= 1


def _read(each: process.Process, task: _Task) -> None:
  """Takes all messages that are there."""
  try:
    while each.connection.poll():
      message = each.receive()
      if not isinstance(message, str):
        task.finish(*message)
  except EOFError:
    text = f"the scoring process ended ({each.exit_text()})"
    _lose(each, task, worker.Failure("died", text))
  except Exception as error:  # a file that changed since it was first loaded
    _lose(each, task, worker.Failure("died", str(error)))


def _lose(each: process.Process, task: _Task, failure: worker.Failure) -> None:
  """Charges the row in work, gives the others back, ends the process.

  Without a row in work the next one pays: every loss ends a row, so rewards
  that kill each process at its start still come to an end.
  """
  rows = each.rows or task.pending
  if rows:
    task.finish(rows.popleft(), worker.Row((), failure))
  task.pending.extendleft(reversed(each.rows))
  each.kill()


def _try_functions(first: process.Process, timeout: float) -> None:
  """Starts the process; raises if a user's function cannot be used.

  One that hangs or crashes on the trial problem is not refused: it may do
  better on the real ones, and its failures are counted there.
  """
  first.start(tries=True)
  for seconds, needed in ((process.STARTUP, True), (timeout, False)):
    gone = not first.connection.poll(seconds)
    try:
      if not gone:
        first.receive()
    except EOFError:
      gone = True
    if gone and needed:
      raise ValueError(
        f"reward {', '.join(first.names)} could not be loaded: its process"
        f" {first.exit_text()}."
      )
    if gone:
      first.kill()
      return


def _kill(processes: Iterable[process.Process]) -> None:
  for each in processes:
    each.kill()


def _checked_weights(
  names: tuple[str, ...], weights: Sequence[float]
) -> tuple[float, ...]:
  if not names:
    raise ValueError(
      "reward must name at least one of"
      f" {', '.join(registry.REWARDS)}; got none."
    )
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(
      f"reward {twice[0]!r} is named twice; name it once and set its factor"
      " in reward_weights."
    )
  if weights and len(weights) != len(names):
    raise ValueError(
      f"reward_weights has {len(weights)} values for {len(names)} rewards;"
      " give one for each, or none."
    )
  return tuple(weights) or (1.0,) * len(names)


def _check_numbers(timeout: float, workers: int) -> None:
  if not 0 < timeout < float("inf"):
    raise ValueError(f"reward_timeout must be positive, got {timeout}.")
  if workers < 0:
    raise ValueError(f"reward_workers must be 0 or more, got {workers}.")
