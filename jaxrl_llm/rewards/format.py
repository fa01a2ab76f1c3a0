"""Whether a completion has the form that was asked for."""

from collections.abc import Callable, Sequence
import re

import numpy as np


def make(pattern: str) -> Callable[..., np.ndarray]:
  r"""Reward `format:REGEX`: 1 if the expression is found in a completion.

  It is searched for anywhere; ^, $ and \Z anchor it, (?s) lets a dot match
  line breaks: format:(?s)^<think>.*</think>.*<answer>.*</answer>\Z

  Args:
    pattern: a regular expression of Python's re.

  Raises:
    ValueError: it is empty or not a regular expression.
  """
  if not pattern:
    raise ValueError(
      r"format needs a regular expression, such as format:\\boxed\{.+\},"
      " got none."
    )
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"format:{pattern} is not a regular expression: {error}; see the"
      " syntax of Python's re."
    ) from None

  def matches(
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[str],
  ) -> np.ndarray:
    """[N] float32, 0 or 1."""
    del prompts, answers
    return np.array(
      [expression.search(text) is not None for text in completions],
      np.float32,
    )

  return matches
