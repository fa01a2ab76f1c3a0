"""Who may see whom by place alone: the part of a mask that is static.

It is what lets whole blocks of scores be skipped when a program is built.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
  """Causal rows, or a prefix with branches that do not see each other.

  A row is [prefix | branch 1 | branch 2 | ...]. A token sees the prefix and its
  own branch, no later token of either, and no token `window` or more places
  before its own. The place of a token is its index in [prefix | its branch].

  Attributes:
    prefix: tokens of the prefix, S.
    branch: tokens of every branch, C; the last one may be cut off. 0: the row
      has no branches and is causal.
    window: places back that a token sees, its own included; None: all.
  """

  prefix: int = 0
  branch: int = 0
  window: int | None = None

  def __post_init__(self):
    """Raises ValueError for numbers that cannot be."""
    if min(self.prefix, self.branch) < 0:
      raise ValueError(
        "Pattern: prefix and branch must be at least 0, got"
        f" {self.prefix} and {self.branch}."
      )
    if self.window is not None and self.window < 1:
      raise ValueError(
        f"Pattern: window must be at least 1 or None, got {self.window}."
      )

  def shifts(self, length: int) -> np.ndarray:
    """Of each token, [length] int32: its index minus its place."""
    behind = np.maximum(np.arange(length, dtype=np.int32) - self.prefix, 0)
    if not self.branch:
      return np.zeros_like(behind)
    return behind // self.branch * self.branch

  def places(self, length: int) -> np.ndarray:
    """[length] int32."""
    return np.arange(length, dtype=np.int32) - self.shifts(length)

  def allows(self, place: Any, shift: Any, key: Any) -> Any:
    """Whether the token at place + shift sees the one of index `key`.

    Integers of NumPy, of JAX or in a kernel; they broadcast.
    """
    past = key <= place + shift
    if not self.branch:
      return past if self.window is None else past & (place - key < self.window)
    prefix, own = key < self.prefix, key >= self.prefix + shift
    if self.window is not None:
      prefix = prefix & (place - key < self.window)
      own = own & (place + shift - key < self.window)
    return past & (prefix | own)

  def pairs(self, length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of queries and of keys between which some score is allowed.

    Args:
      length: of the row, a multiple of block.
      block: tokens.

    Returns:
      Indices of query blocks, in order, and of key blocks.
    """
    index = np.arange(length)[:, None]
    place, shift = (
      x[:, None] for x in (self.places(length), self.shifts(length))
    )
    first = np.arange(0, length, block)[None]
    back = length if self.window is None else self.window
    last_of_prefix = (
      np.minimum(index, self.prefix - 1) if self.branch else index
    )
    prefix = _meets(place - back + 1, last_of_prefix, first, block)
    own = _meets(
      np.maximum(self.prefix + shift, index - back + 1), index, first, block
    )
    some = prefix | own if self.branch else prefix
    return np.nonzero(some.reshape(-1, block, some.shape[1]).any(axis=1))


def _meets(low, high, first, block):
  """Whether [low, high] has an index of the block that begins at `first`."""
  return np.maximum(low, first) <= np.minimum(high, first + block - 1)
