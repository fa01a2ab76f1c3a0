"""Sequence packing: the tokens of a rollout laid side by side, no padding.

Host code in numpy, a function of the rollout alone. Each prompt is fed once,
followed by its group's completions as long as they are: sum p + sum c tokens
instead of B S + N T, p and c real lengths. Only attention needs a prompt before
each of its completions; that is arranged there, by index (models/packed.py),
so that projections, MLPs and norms never see a prompt twice. Repeating it in
the batch would cost G (p + c) where this costs p + G c.

Shapes are static, so sizes are the largest that can be times SHARES: each is at
most a fifth beyond the one before, and a step is compiled once for each that it
meets. No token is ever left out.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jaxrl_llm import types

# Of the largest size: 1 / 16 to 1, four to an octave.
SHARES = tuple(2.0 ** (-step / 4) for step in range(16, -1, -1))
# Tokens of a block are a multiple of it where they are many: a TPU's lanes.
_LANES = 128


def first_fit_decreasing(
  lengths: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Lays sequences in rows: the longest first, each in the first with room.

  Args:
    lengths: [n] tokens of each, from 1 to `size`.
    size: tokens of a row.

  Returns:
    The row of each and its first place there, [n] int32 both. At most 11/9 of
    the fewest rows, and one.

  Raises:
    ValueError: a length that no row holds.

  References:
    Johnson 1973, Near-optimal bin packing algorithms; the bound is of Dosa
    2007, doi:10.1007/978-3-540-74450-4_1.
  """
  lengths = np.asarray(lengths, np.int32)
  if lengths.size and not 1 <= lengths.min() <= lengths.max() <= size:
    raise ValueError(
      f"lengths must be from 1 to size = {size}, got {lengths.min()} to"
      f" {lengths.max()}."
    )
  left = np.full(len(lengths), size, np.int32)
  rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
  for i in np.argsort(-lengths, kind="stable"):
    row = np.argmax(left >= lengths[i])
    rows[i], starts[i] = row, size - left[row]
    left[row] -= lengths[i]
  return rows, starts


class Sizes(NamedTuple):
  """Of one block.

  Attributes:
    tokens: that are fed, n.
    chosen: that are scored, m.
    rows: of attention, r.
    length: tokens of a row of attention, L.
  """

  tokens: int
  chosen: int
  rows: int
  length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packer:
  """Gives rollouts their packing.

  Attributes:
    pieces: mini_batches * micro_batches.
    shares: devices that each piece's rows are cut over, data * fsdp.
  """

  pieces: int = 1
  shares: int = 1

  def __call__(
    self, rollout: types.Rollout
  ) -> tuple[types.Rollout, dict[str, float]]:
    """The rollout with its packing, and how dense it is.

    Args:
      rollout: of host arrays. A mask may have holes; what it hides is not fed,
        but for token 0 before the last chosen one.

    Returns:
      The rollout, and metrics: packing/efficiency, real tokens over the places
      that are computed; packing/tokens, those places over the padded batch's.

    Raises:
      ValueError: rows that pieces and shares do not divide.
    """
    blocks = [_lay(*arrays) for arrays in self._blocks(rollout)]
    sizes = _smallest(blocks, self.largest_sizes(rollout))
    filled = [block.filled(sizes) for block in blocks]
    packing = types.Packing(
      **{name: np.stack([x[name] for x in filled]) for name in filled[0]},
      index=np.concatenate([block.index for block in blocks]),
    )
    real, places = sum(len(b.tokens) for b in blocks), packing.tokens.size
    padded = len(blocks) * self.largest_sizes(rollout).tokens
    return rollout.replace(packing=packing), {
      "packing/efficiency": real / places,
      "packing/tokens": places / padded,
    }

  def largest_sizes(self, rollout: types.Rollout) -> Sizes:
    """Of a block whose every prompt and completion is as long as can be."""
    count, length = rollout.mask.shape
    prompt = rollout.prompts.shape[1]
    rows, group = self._cut(count, rollout.group_size)
    fed = length - 1
    return Sizes(
      tokens=rows // group * prompt + rows * fed,
      chosen=rows * length,
      rows=rows,
      length=prompt + fed,
    )

  def largest(self, rollout: types.Rollout) -> types.Rollout:
    """The rollout with a packing of the largest sizes, all zeros."""
    sizes = _sized(self.largest_sizes(rollout), SHARES[-1])
    nothing = _Block([], [], [], [], [], np.zeros(rollout.mask.shape, np.int32))
    count = self.pieces * self.shares
    return rollout.replace(
      packing=types.Packing(
        **{
          name: np.stack([x] * count)
          for name, x in nothing.filled(sizes).items()
        },
        index=nothing.index,
      )
    )

  def _cut(self, count, group_size):
    """Rows of a block, and how many of them share a prompt; as step.split."""
    blocks = self.pieces * self.shares
    group = math.gcd(group_size, count // self.pieces)
    if count % blocks or count // blocks % group:
      raise ValueError(
        f"{count} rows in groups of {group_size} cannot be packed for"
        f" {self.pieces} pieces on {self.shares} devices each."
      )
    return count // blocks, group

  def _blocks(self, rollout):
    rows, group = self._cut(len(rollout.mask), rollout.group_size)
    arrays = (
      rollout.prompts,
      rollout.prompt_mask,
      rollout.completions,
      rollout.mask,
    )
    for first in range(0, len(rollout.mask), rows):
      yield *(np.asarray(x)[first : first + rows] for x in arrays), group


class _Block(NamedTuple):
  """The real tokens of one block; `sequences` are lists of their indices."""

  tokens: np.ndarray
  positions: np.ndarray
  before: np.ndarray
  chosen: np.ndarray
  sequences: list[np.ndarray]
  index: np.ndarray

  def lengths(self):
    """Of the sequences, [n]."""
    return np.array([len(x) for x in self.sequences], np.int32)

  def filled(self, sizes: Sizes) -> dict[str, np.ndarray]:
    """The fields of types.Packing but `index`, zeros behind what is real."""
    rows = np.zeros((sizes.rows, sizes.length), np.int32)
    segments, places = np.zeros_like(rows), np.zeros(sizes.tokens, np.int32)
    found = first_fit_decreasing(self.lengths(), sizes.length)
    for number, (row, start) in enumerate(zip(*found, strict=True)):
      tokens = self.sequences[number]
      where = np.arange(start, start + len(tokens))
      rows[row, where], segments[row, where] = tokens, number + 1
      places[tokens] = row * sizes.length + where
    return {
      "tokens": _padded(self.tokens, sizes.tokens),
      "positions": _padded(self.positions, sizes.tokens),
      "rows": rows,
      "segments": segments,
      "places": places,
      "before": _padded(self.before, sizes.chosen),
      "chosen": _padded(self.chosen, sizes.chosen),
      "real": np.arange(sizes.chosen) < len(self.chosen),
    }


def _lay(prompts, prompt_mask, completions, mask, group) -> _Block:
  """Prompts once a group, completions up to the last token that predicts."""
  length = mask.shape[1]
  lengths = np.where(
    mask.any(axis=1), length - np.argmax(mask[:, ::-1], axis=1), 0
  )
  tokens, positions, before, chosen, sequences = [], [], [], [], []
  index, end, count = np.zeros(mask.shape, np.int32), 0, 0
  for first in range(0, len(mask), group):
    if not lengths[first : first + group].any():
      continue
    prompt = prompts[first][prompt_mask[first]]
    shared, end = np.arange(end, end + len(prompt)), end + len(prompt)
    tokens.append(prompt)
    positions.append(np.arange(len(prompt)))
    if lengths[first : first + group].max() == 1:
      sequences.append(shared)
    for row in range(first, first + group):
      fed = max(lengths[row] - 1, 0)
      own, end = np.arange(end, end + fed), end + fed
      tokens.append(np.where(mask[row], completions[row], 0)[:fed])
      positions.append(len(prompt) + np.arange(fed))
      if fed:
        sequences.append(np.concatenate([shared, own]))
      picked = np.flatnonzero(mask[row])
      before.append(np.concatenate([shared[-1:], own])[picked])
      chosen.append(completions[row][picked])
      index[row, picked] = np.arange(count, count + len(picked))
      count += len(picked)
  flat = (
    np.concatenate([np.zeros(0, np.int32), *x]).astype(np.int32)
    for x in (tokens, positions, before, chosen)
  )
  return _Block(*flat, sequences, index)


def _smallest(blocks: list[_Block], largest: Sizes) -> Sizes:
  """The smallest sizes that hold every block, each found by itself.

  Many short completions of long prompts need few tokens and many rows.
  """
  rows = [
    first_fit_decreasing(block.lengths(), largest.length)[0].max(initial=-1) + 1
    for block in blocks
  ]
  needed = Sizes(
    tokens=max(len(block.tokens) for block in blocks),
    chosen=max(len(block.chosen) for block in blocks),
    rows=max(rows),
    length=largest.length,
  )
  sizes = [_sized(largest, share) for share in SHARES]
  fitting = (
    next(size for size in of_all if size >= least)
    for of_all, least in zip(zip(*sizes, strict=True), needed, strict=True)
  )
  return Sizes(*fitting)


def _sized(largest: Sizes, share: float) -> Sizes:
  """This share of all but the length of rows, rounded up."""
  unit = _LANES if largest.tokens >= 8 * _LANES else 1

  def part(size, unit=1):
    return math.ceil(size * share / unit) * unit

  return largest._replace(
    tokens=part(largest.tokens, unit),
    chosen=part(largest.chosen, unit),
    rows=part(largest.rows),
  )


def _padded(x, size):
  return np.pad(np.asarray(x, np.int32), (0, size - len(x)))
