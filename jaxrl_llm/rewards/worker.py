"""What runs in a scoring process: one row at a time, every failure a value.

A row is one completion. Rewards are called with lists of length one, so that
a bad row costs only itself. The parent is in process.py.
"""

from collections.abc import Callable, Sequence
from multiprocessing import connection as connections
import signal
from typing import Any, NamedTuple

from jaxrl_llm.rewards import functions, registry

# Beyond the time that the parent allows, a process ends by itself: should the
# parent be gone, nobody else would end it. Seconds.
GRACE = 5.0

Functions = Sequence[tuple[str, Callable[..., Any]]]


class Failure(NamedTuple):
  """Why a row has no reward.

  Attributes:
    kind: "exception", "timeout", "nan" or "died".
    message: one line.
  """

  kind: str
  message: str


class Row(NamedTuple):
  """What the rewards say of one completion.

  Attributes:
    values: for each reward its numbers; the key is "" for a reward without
      components, and the dict is empty where the reward failed or, having
      answered None, does not apply.
    failure: the first thing that went wrong, or None.
  """

  values: tuple[dict[str, float], ...]
  failure: Failure | None


def load(names: Sequence[str]) -> Functions:
  """Reward functions with their names; raises what registry.load raises."""
  return [(name, registry.load(name)) for name in names]


def trial(rewards: Functions) -> None:
  """Tries users' functions; TypeError if one returns the wrong form."""
  for name, function in rewards:
    if registry.is_function(name):
      functions.trial(name, function)


def score_row(
  rewards: Functions, prompt: str, completion: str, answer: Any
) -> Row:
  """Scores one completion; nothing but KeyboardInterrupt gets out.

  Args:
    rewards: from load.
    prompt: text.
    completion: text.
    answer: what the data source gave.
  """
  values, failures = [], []
  for name, function in rewards:
    numbers, failure = _call(name, function, ([prompt], [completion], [answer]))
    values.append(numbers)
    failures.append(failure)
  if not any(values):
    failures.append(Failure("nan", "no reward applies: all gave None"))
  return Row(tuple(values), next(filter(None, failures), None))


def main(parent: connections.Connection) -> None:
  """Serves the parent until it closes the connection.

  Receives (names, timeout in seconds, startup in seconds, whether to try
  users' functions), answers "loaded" and "ready", or the exception; then
  receives lists of (index, prompt, completion, answer) and answers each row
  with (index, Row).
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  try:
    rewards, timeout = _prepare(parent)
    while True:
      for index, *texts in parent.recv():
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE)
        row = score_row(rewards, *texts)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        parent.send((index, row))
  except (EOFError, ConnectionError):
    return


def _prepare(parent: connections.Connection) -> tuple[Functions, float]:
  names, timeout, startup, tries = parent.recv()
  signal.setitimer(signal.ITIMER_REAL, startup + GRACE)
  try:
    rewards = load(names)
    parent.send("loaded")
    if tries:
      trial(rewards)
    parent.send("ready")
  except (ValueError, TypeError, OSError, ImportError) as error:
    parent.send(type(error)(str(error)))
    raise EOFError from error
  signal.setitimer(signal.ITIMER_REAL, 0.0)
  return rewards, timeout


def _call(
  name: str, function: Callable[..., Any], row: tuple[list, list, list]
) -> tuple[dict[str, float], Failure | None]:
  try:
    result = function(*row)
    functions.check_result(name, result, 1)
    parts = result if isinstance(result, dict) else {"": result}
    numbers = {
      key: float(part[0]) for key, part in parts.items() if part[0] is not None
    }
  except (Exception, SystemExit) as error:
    line = f"{name} raised {type(error).__name__}: {functions.one_line(error)}"
    return {}, Failure("exception", line)
  for key, value in numbers.items():
    if value - value != 0:  # NaN or infinite
      return numbers, Failure("nan", f"{name} gave {value} {key}".rstrip())
  return numbers, None
