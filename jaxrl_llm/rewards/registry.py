"""Rewards by name: the verifiers of this room, or file.py:function.

`check` is cheap and for the process that trains; `load` imports what a reward
needs and is for the processes that score.
"""

from collections.abc import Callable
import difflib
from typing import Any

from jaxrl_llm.rewards import (
  answers,
  countdown,
  exact,
  format,
  functions,
  length,
)

# Name -> what it measures, for help texts.
REWARDS = {
  "exact_integer": "last integer of the first line equals the answer",
  "math": "mathematically equal to the answer (math-verify)",
  "countdown": "expression uses the numbers once and reaches the target",
  "think_format": "starts with <think>, once, and </think> follows",
  "format:REGEX": "the regular expression is found in the completion",
  "length:N:characters": "1 up to N characters, falling to 0 at 2 N",
  "length:N:words": "1 up to N words, falling to 0 at 2 N",
  "file.py:function": "your own (prompts, completions, answers) -> numbers",
}

_PLAIN = {
  "exact_integer": lambda: exact.exact_integer,
  "math": answers.make,
  "countdown": lambda: countdown.countdown,
  "think_format": lambda: format.think_format,
}
_WITH_ARGUMENT = {"format": format.make, "length": length.make}


def is_function(name: str) -> bool:
  """Whether a name means a user's function."""
  head = name.partition(":")[0]
  return head not in _WITH_ARGUMENT and (".py:" in name or name.endswith(".py"))


def check(name: str) -> None:
  """Raises, one line, if `name` is no reward; imports and runs nothing.

  Raises:
    ValueError: unknown name or bad argument.
    FileNotFoundError: the file of a user's function is not there.
    ModuleNotFoundError: a package that the reward needs is not there.
  """
  head, colon, argument = name.partition(":")
  if is_function(name):
    functions.split(name)
  elif head in _WITH_ARGUMENT:
    _WITH_ARGUMENT[head](argument)
  elif head not in _PLAIN:
    raise ValueError(
      f"reward {name!r} is not known; legal are {', '.join(REWARDS)}"
      f"{_suggestion(head)}"
    )
  elif colon:
    raise ValueError(f"reward {head!r} takes no argument, got {name!r}.")
  elif head == "math":
    answers.require()


def load(name: str) -> Callable[..., Any]:
  """The reward function of a name; see types.Reward for how to call it.

  Raises:
    what check raises, and for a user's function what functions.load raises.
  """
  check(name)
  if is_function(name):
    return functions.load(name)
  head, _, argument = name.partition(":")
  if head in _WITH_ARGUMENT:
    return _WITH_ARGUMENT[head](argument)
  return _PLAIN[head]()


def labels(names: tuple[str, ...]) -> tuple[str, ...]:
  """Short, distinct names for metrics.

  "file.py:function" becomes "function" and "format:REGEX" "format", except
  where two would be equal: those keep their full names.
  """
  short = [
    name.rpartition(":")[2] if is_function(name) else name.partition(":")[0]
    for name in names
  ]
  return tuple(
    name if short.count(brief) > 1 else brief
    for name, brief in zip(names, short, strict=True)
  )


def _suggestion(head: str) -> str:
  near = difflib.get_close_matches(head, [*_PLAIN, *_WITH_ARGUMENT], 1, 0.5)
  return f"; did you mean {near[0]!r}?" if near else "."
