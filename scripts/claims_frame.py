"""What a check of one paper's claim answers, and how numbers are written."""

from collections.abc import Mapping, Sequence
import dataclasses

import compare_report as report
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """What was seen.

  Attributes:
    shows: whether the claim shows; None: not decided at this size.
    text: one or two sentences with the numbers.
    rows: a small table, one dict a row, the same keys in all.
    curves: {label: [seeds, steps]}, for a plot with bands.
    axes: names of the plot's axes.
  """

  shows: bool | None
  text: str
  rows: Sequence[Mapping[str, str | float]] = ()
  curves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  axes: tuple[str, str] = ("step", "mean reward")


def band(values: Sequence[float], digits: int = 3) -> str:
  """ "mean (low to high)": the 95 % interval over seeds, Student's t.

  Args:
    values: [seeds].
    digits: after the point.
  """
  mean, half = report.interval(np.asarray(values, np.float64))
  if np.isnan(half):
    return f"{mean:.{digits}f} (one seed)"
  return (
    f"{mean:.{digits}f} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"
  )


def factor(logs: Sequence[float]) -> str:
  """ "mean (low to high)" of ratios given by their logarithms, geometric.

  Args:
    logs: [seeds].
  """
  mean, half = report.interval(np.asarray(logs, np.float64))
  low, middle, high = np.exp([mean - half, mean, mean + half])
  return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def differs(left: Sequence[float], right: Sequence[float]) -> bool | None:
  """Whether left is above right, seed by seed; None where it is not decided.

  True or False if the 95 % interval of the mean difference is above or below 0.

  Args:
    left: [seeds].
    right: [seeds], of the same seeds.
  """
  gap = np.asarray(left, np.float64) - np.asarray(right, np.float64)
  mean, half = report.interval(gap)
  if not abs(mean) > half:
    return None
  return bool(mean > 0)
