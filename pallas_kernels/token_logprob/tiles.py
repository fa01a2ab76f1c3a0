"""Tiles of the Pallas kernels of token_logprob, and the VMEM they need.

A block holds the whole width D, so that one product gives finished logits:

  forward  (token tile, vocabulary tile), the vocabulary innermost
  dx       the same, with a float32 [tokens, D] accumulator
  dw       (vocabulary tile, token tile), tokens innermost, with a float32
           [vocab, D] accumulator
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels import blocks, dispatch

_LANES = blocks.LANES


class Tile(NamedTuple):
  """Rows and columns of the logits that one step of a kernel works on.

  Attributes:
    tokens: multiple of 128.
    vocab: multiple of 128.
  """

  tokens: int
  vocab: int


class Blocks(NamedTuple):
  """A tile for each kernel; None leaves the choice to the chip's VMEM."""

  forward: Tile | None = None
  dx: Tile | None = None
  dw: Tile | None = None


# Best first. Larger ones read W (dw: hidden) less often, and compile for
# minutes; the products are compute bound from 512 on.
_BEST = {
  "forward": ((1024, 512), (512, 512), (512, 256), (256, 256)),
  "dx": ((512, 512), (512, 256), (256, 256)),
  "dw": ((512, 512), (256, 512), (256, 256)),
}
_SMALLEST = ((256, 128), (128, 128))


def choose(kernel: str, hidden: Any, head: Any, spec: Any) -> Tile:
  """The tile of a kernel: the given one, or the best that fits.

  Args:
    kernel: "forward", "dx" or "dw".
    hidden: [N, D].
    head: [V, D] or [D, V].
    spec: xla.Spec.

  Raises:
    blocks.Unsupported: for dtypes and widths that the kernels do not take and
      for a tile that is too large for the VMEM of dispatch.target().
    ValueError: if a given tile is not made of multiples of 128.
  """
  _refuse(hidden, head)
  tokens, width = hidden.shape
  vocab = head.size // width
  most = [_up(size) for size in (tokens, vocab)]
  needed = functools.partial(
    vmem_bytes, kernel, width, hidden.dtype, head.dtype
  )
  name, chip = f"token_logprob {kernel}", dispatch.target()
  given = spec.blocks and getattr(spec.blocks, kernel)
  if given is None:
    fitting = [
      Tile(*map(min, tile, most)) for tile in _BEST[kernel] + _SMALLEST
    ]
    return blocks.first_that_fits(name, fitting, needed, chip)
  given = Tile(*given)
  if min(given) < 1 or given.tokens % _LANES or given.vocab % _LANES:
    raise ValueError(f"blocks.{kernel} needs multiples of 128, got {given}.")
  blocks.check_fits(name, given, needed(given), chip)
  return given


def vmem_bytes(
  kernel: str, width: int, hidden_dtype: Any, head_dtype: Any, tile: Tile
) -> int:
  """Bytes of VMEM that a kernel needs: two buffers a block, scratch, values.

  Args:
    kernel: "forward", "dx" or "dw".
    width: D.
    hidden_dtype: dtype of the products and of dx.
    head_dtype: dtype of the head and of dw.
    tile: token and vocabulary entries of a step.
  """
  tokens, vocab = tile
  x, w = (jnp.dtype(d).itemsize for d in (hidden_dtype, head_dtype))
  rows = tokens * width  # of hidden
  columns = vocab * width  # of the head
  total = 2 * rows * x + 2 * columns * w  # double-buffered inputs
  total += 6 * tokens * _LANES * 4  # per-token numbers, lanes padded
  total += 4 * tokens * vocab * 4  # logits and what follows them
  if x != w:
    total += columns * x  # the head, cast
  if kernel == "dx":
    total += rows * (2 * x + 4)
  if kernel == "dw":
    total += columns * (2 * w + 4)
  # Operands turned for the matrix unit; float32 ones also cut into bfloat16
  # pieces. Measured: the least limit that compiles.
  if x == 4:
    return total + (7 if kernel == "forward" else 12) * (rows + columns)
  return total + 2 * columns + (0 if kernel == "forward" else 2 * rows)


def _refuse(hidden, head):
  for name, array in (("hidden", hidden), ("head", head)):
    if array.dtype not in (jnp.float32, jnp.bfloat16):
      raise blocks.Unsupported(
        "token_logprob: the kernels take float32 and bfloat16, got"
        f" {name} {array.dtype}; cast it, or use impl='xla'."
      )
  if hidden.shape[1] % _LANES or not hidden.size:
    raise blocks.Unsupported(
      "token_logprob: the kernels take a width D that is a multiple of 128 and"
      f" at least one token, got hidden {hidden.shape}; use impl='xla'."
    )


def _up(size):
  return -(-size // _LANES) * _LANES
