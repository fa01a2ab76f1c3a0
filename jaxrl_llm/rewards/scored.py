"""Rows of numbers to one reward each, named components and counts."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxrl_llm.rewards import worker

KINDS = ("exception", "timeout", "nan", "died")
# Messages kept of one call to score.
MESSAGES = 5


@dataclasses.dataclass(frozen=True)
class Scored:
  """What the rewards say of N completions.

  Attributes:
    rewards: [N] float32, weighted sums of the rewards that apply; NaN where a
      row could not be scored.
    components: {name: [N] float32} before weighting; NaN where one failed or
      does not apply. The rewards come first, in their order.
    failures: number of rows lost, by kind; every kind of KINDS is there, and
      the sum is the number of NaN in rewards.
    messages: the first of them, one line each.
  """

  rewards: np.ndarray
  components: dict[str, np.ndarray]
  failures: dict[str, int]
  messages: list[str]


class Assembly:
  """Adds up rewards under fixed names and weights."""

  def __init__(self, labels: Sequence[str], weights: Sequence[float]):
    """Remembers K names and factors.

    Args:
      labels: [K] different names of the rewards, for metrics.
      weights: [K] factors.
    """
    self._labels = tuple(labels)
    self._weights = tuple(weights)
    self._owners: dict[str, int] = {}

  def __call__(self, rows: Sequence[worker.Row]) -> Scored:
    """Joins N rows; a row with a failure gets the reward NaN."""
    count = len(rows)
    rewards = _missing(count)
    components = {name: _missing(count) for name in self._labels}
    for i, row in enumerate(rows):
      for name, value in self._named(row):
        components.setdefault(name, _missing(count))[i] = value
      if row.failure is None:
        rewards[i] = self._total(row)
    lost = [(i, row.failure) for i, row in enumerate(rows) if row.failure]
    kinds = [failure.kind for _, failure in lost]
    return Scored(
      rewards=rewards,
      components=components,
      failures={kind: kinds.count(kind) for kind in KINDS},
      messages=[f"row {i}: {why.message}" for i, why in lost[:MESSAGES]],
    )

  def _total(self, row: worker.Row) -> float:
    sums = (sum(numbers.values()) for numbers in row.values)
    pairs = zip(self._weights, sums, strict=True)
    return sum(weight * value for weight, value in pairs)

  def _named(self, row: worker.Row) -> list[tuple[str, float]]:
    """Names and values: each reward's sum, and its components if it has any."""
    named = []
    for k, numbers in enumerate(row.values):
      if numbers:
        named.append((self._labels[k], sum(numbers.values())))
      named += [(self._name(k, key), v) for key, v in numbers.items() if key]
    return named

  def _name(self, k: int, key: str) -> str:
    """Name of a component; the first reward that uses a name keeps it."""
    if self._owners.setdefault(key, k) == k and key not in self._labels:
      return key
    return f"{self._labels[k]}/{key}"


def join(parts: Sequence[Scored]) -> Scored:
  """What the rewards said of several batches, as of one; at least one."""
  if len(parts) == 1:
    return parts[0]
  names = dict.fromkeys(name for part in parts for name in part.components)
  return Scored(
    rewards=np.concatenate([part.rewards for part in parts]),
    components={
      name: np.concatenate(
        [
          part.components.get(name, _missing(len(part.rewards)))
          for part in parts
        ]
      )
      for name in names
    },
    failures={
      kind: sum(part.failures[kind] for part in parts)
      for kind in parts[0].failures
    },
    messages=[text for part in parts for text in part.messages],
  )


def _missing(rows: int) -> np.ndarray:
  return np.full(rows, np.nan, np.float32)
