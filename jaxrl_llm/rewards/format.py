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


def think_format(
  prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str]
) -> np.ndarray:
  """Reward `think_format`: 1 if a completion thinks once, then goes on.

  It must start with <think>, which must not come again, and </think> must
  follow somewhere; what it thinks, and what comes after, may be empty (TRL
  think_format_reward).

  Returns:
    [N] float32, 0 or 1.
  """
  del prompts, answers
  return np.array(
    [
      text.startswith("<think>")
      and text.count("<think>") == 1
      and "</think>" in text
      for text in completions
    ],
    np.float32,
  )
