"""Mathematical equality through math-verify: numbers, LaTeX, GSM8K answers."""

from collections.abc import Callable, Sequence
import functools
import importlib.util
import logging
import re

import numpy as np

# GSM8K writes the final answer after this mark.
MARK = "####"


def require() -> None:
  """Raises ModuleNotFoundError, one line, if math-verify is not installed."""
  if importlib.util.find_spec("math_verify") is None:
    raise ModuleNotFoundError(
      "the reward math needs the package math-verify; pip install math-verify."
    )


def make() -> Callable[..., np.ndarray]:
  """Imports math-verify (seconds) and returns the reward `math`.

  math-verify stops long computations by signals, which work in a main thread
  only. They are off here: the pool's timeout does that work anywhere.
  """
  require()
  # It warns, once for each of its two modules, that its timeouts are off.
  for module in ("parser", "grader"):
    logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
  equal("1/2", r"\boxed{\frac{1}{2}}")  # loads the LaTeX grammar
  return math


def math(
  prompts: Sequence[str],
  completions: Sequence[str],
  answers: Sequence[str],
) -> np.ndarray:
  r"""1 if a completion's final answer equals the answer, else 0.

  The final answer is what follows the last "####" on its line; without that
  mark, math-verify looks for \boxed{}, then for LaTeX, then for the last
  number. Thousands separators, currencies and units are ignored; equality is
  mathematical (0.5 = 1/2 = \frac{1}{2}).

  Args:
    prompts: [N] not read.
    completions: [N] texts.
    answers: [N] texts; of one with "####" only what follows it counts.

  Returns:
    [N] float32, 0 or 1.

  Raises:
    ValueError: an answer cannot be read as mathematics.

  References:
    Kydlicek et al. 2025, the package math-verify.
  """
  del prompts
  pairs = zip(completions, answers, strict=True)
  return np.array(
    [equal(str(answer), text) for text, answer in pairs], np.float32
  )


def equal(answer: str, completion: str) -> bool:
  """Whether the completion's final answer is the answer."""
  import math_verify

  gold = _gold(after_mark(answer))
  found = math_verify.parse(after_mark(completion), parsing_timeout=None)
  return math_verify.verify(list(gold), found, timeout_seconds=None)


def after_mark(text: str) -> str:
  """What follows the last "####" on its line; the whole text without one."""
  _, mark, rest = text.rpartition(MARK)
  return rest.strip().split("\n")[0].strip() if mark else text


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> tuple:
  import math_verify

  plain = answer.strip()
  if not re.search(r"\\boxed|\$", plain):
    plain = rf"\boxed{{{plain}}}"
  parsed = math_verify.parse(plain, parsing_timeout=None)
  if not answer.strip() or not parsed:
    raise ValueError(
      f"answer must be mathematics for the reward math, got {answer!r}."
    )
  return tuple(parsed)
