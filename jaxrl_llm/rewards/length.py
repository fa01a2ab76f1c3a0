"""Keeps completions short. Lengths of TEXT: tokens are not known here."""

from collections.abc import Callable, Sequence

import numpy as np

_COUNT = {"characters": len, "words": lambda text: len(text.split())}


def make(argument: str) -> Callable[..., np.ndarray]:
  """Reward `length:N:characters` or `length:N:words`.

    reward = clip(2 - length / N, 0, 1)

  1 up to the limit N, then falling linearly to 0 at 2 N.

  Args:
    argument: "N:characters" or "N:words"; words are separated by white space.

  Raises:
    ValueError: N is not a positive integer, or the unit is none of the two.
  """
  limit, _, unit = argument.partition(":")
  if unit not in _COUNT:
    raise ValueError(
      "length must name its unit, length:N:characters or length:N:words,"
      f" got 'length:{argument}'; tokens are limited by completion_length."
    )
  if not limit.isdecimal() or int(limit) < 1:
    raise ValueError(
      f"length must have a positive integer limit, got {limit!r} in"
      f" 'length:{argument}'; try length:200:{unit}."
    )
  count, most = _COUNT[unit], int(limit)

  def short(
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[str],
  ) -> np.ndarray:
    """[N] float32 in [0, 1]."""
    del prompts, answers
    lengths = np.array([count(text) for text in completions], np.float32)
    return np.clip(2.0 - lengths / most, 0.0, 1.0).astype(np.float32)

  return short
