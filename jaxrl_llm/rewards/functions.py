"""A user's own reward: a function in a Python file, named file.py:function."""

from collections.abc import Callable
import difflib
import hashlib
import importlib.util
import inspect
import os
import pathlib
import sys
from types import ModuleType
from typing import Any

SIGNATURE = "(prompts, completions, answers)"

# A problem for the trial call; two rows, so that a scalar is told from a list.
TRIAL = (["1 + 1 =", "2 + 2 ="], [" 2", " 5"], ["2", "4"])


def split(name: str, kind: str = "reward") -> tuple[pathlib.Path, str]:
  """Path and function of "file.py:function".

  Args:
    name: of the function.
    kind: what it is, for messages.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: no function is named.
  """
  path, colon, function = name.rpartition(":")
  if not colon or not function:
    raise ValueError(
      f"{kind} {name!r} names no function; write file.py:function."
    )
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(
      f"{kind} {name!r}: there is no file {path!r} in {os.getcwd()!r}."
    )
  return pathlib.Path(path), function


def load(
  name: str, *, kind: str = "reward", takes: str = SIGNATURE
) -> Callable[..., Any]:
  """Imports the file and returns the function.

  Args:
    name: "file.py:function"; modules beside the file can be imported by it.
    kind: what it is, for messages.
    takes: its arguments, as "(one, other)".

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file fails when it is run, or has no such function.
    TypeError: it cannot be called with these arguments.
  """
  path, attribute = split(name, kind)
  module = _import(f"{kind} {name!r}", path)
  function = getattr(module, attribute, None)
  if function is None:
    raise ValueError(
      f"{kind} {name!r}: {path.name} has no function {attribute!r}"
      f"{_near(attribute, module)}."
    )
  if not callable(function):
    raise TypeError(
      f"{kind} {name!r}: {attribute} must be a function {takes}, got"
      f" {type(function).__name__}."
    )
  _check_signature(f"{kind} {name!r}", function, takes)
  return function


def check_result(name: str, result: Any, rows: int) -> None:
  """Raises TypeError, one line, unless `result` is [rows] or {name: [rows]}."""
  parts = result if isinstance(result, dict) else {"": result}
  wrong = not parts or any(_length(part) != rows for part in parts.values())
  if wrong or not all(isinstance(key, str) for key in parts):
    raise TypeError(
      f"reward {name!r} must return one number per completion (here"
      f" {rows}), or {{name: numbers}}; got {_describe(result)}."
    )


def trial(name: str, function: Callable[..., Any]) -> None:
  """Calls the function on TRIAL and checks the form of what it returns.

  What it raises is not an error here: it may want answers of another kind.

  Raises:
    TypeError: what it returned has the wrong form.
  """
  try:
    result = function(*TRIAL)
  except (Exception, SystemExit):
    return
  check_result(name, result, len(TRIAL[0]))


def _import(name: str, path: pathlib.Path) -> ModuleType:
  """Runs the file as a module under a name of its own."""
  digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
  spec = importlib.util.spec_from_file_location(
    f"reward_{path.stem}_{digest}", path
  )
  if spec is None or spec.loader is None:
    raise ValueError(f"{name}: {path.name} must end in .py.")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  folder = str(path.resolve().parent)
  if folder not in sys.path:
    sys.path.append(folder)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    raise ValueError(
      f"{name}: running {path.name} failed with"
      f" {type(error).__name__}: {one_line(error)}."
    ) from error
  return module


def _check_signature(
  name: str, function: Callable[..., Any], takes: str
) -> None:
  try:
    signature = inspect.signature(function)
  except ValueError:  # some builtins have none
    return
  try:
    signature.bind(*takes.split(","))
  except TypeError:
    raise TypeError(
      f"{name} must take {takes}, its signature is {signature}."
    ) from None


def _near(attribute: str, module: ModuleType) -> str:
  own = [key for key in vars(module) if callable(getattr(module, key))]
  public = sorted(key for key in own if not key.startswith("_"))
  near = difflib.get_close_matches(attribute, public, 1)
  if near:
    return f"; did you mean {near[0]!r}"
  return f"; it has {', '.join(public)}" if public else ""


def _length(part: Any) -> int | None:
  """Number of entries of a flat sequence, None if it is not one."""
  shape = getattr(part, "shape", None)
  if shape is not None:
    return shape[0] if len(shape) == 1 else None
  if not isinstance(part, list | tuple):
    return None
  flat = all(value is None or _is_number(value) for value in part)
  return len(part) if flat else None


def _is_number(value: Any) -> bool:
  try:
    float(value)
  except (TypeError, ValueError):
    return False
  return not isinstance(value, str | bytes)


def _describe(result: Any) -> str:
  kind = type(result).__name__
  if isinstance(result, dict):
    parts = (f"{key!r}: {_describe(part)}" for key, part in result.items())
    return "{" + ", ".join(parts) + "}"
  if hasattr(result, "shape"):
    return f"{kind} of shape {tuple(result.shape)}"
  if isinstance(result, list | tuple):
    inner = sorted({type(value).__name__ for value in result})
    return f"{kind} of {len(result)} {'/'.join(inner)}"
  return kind


def one_line(error: BaseException, limit: int = 200) -> str:
  """An exception's text on one line, at most `limit` characters."""
  return " ".join(str(error).split())[:limit].rstrip(".")
