"""Exact equality of integers: cheap, and right for generated arithmetic."""

from collections.abc import Sequence
import re

import numpy as np

# Python refuses to convert longer ones; no honest answer is that long.
MAX_DIGITS = 4000


def exact_integer(
  prompts: Sequence[str],
  completions: Sequence[str],
  answers: Sequence[str],
) -> np.ndarray:
  """1 if the last integer of a completion's FIRST line is the answer, else 0.

  Commas are removed first ("1,234" is 1234). What follows the first line
  break is not read: a base model goes on with further questions of its own.

  Args:
    prompts: [N] not read.
    completions: [N] texts.
    answers: [N] integers as text.

  Returns:
    [N] float32, 0 or 1.

  Raises:
    ValueError: an answer is not an integer.
  """
  del prompts
  pairs = zip(completions, answers, strict=True)
  return np.array(
    [last_integer(text) == integer(answer) for text, answer in pairs],
    np.float32,
  )


def last_integer(text: str) -> int | None:
  """Last integer of the first line, or None."""
  found = re.findall(r"-?\d+", text.split("\n")[0].replace(",", ""))
  if not found or len(found[-1]) > MAX_DIGITS:
    return None
  return int(found[-1])


def integer(answer: str) -> int:
  """An answer as a number; commas are dropped.

  Raises:
    ValueError: one line: it is no integer.
  """
  try:
    return int(str(answer).replace(",", ""))
  except ValueError:
    raise ValueError(
      f"answer must be an integer for exact_integer, got {answer!r}; use"
      " the reward math for other answers."
    ) from None
