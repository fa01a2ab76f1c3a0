"""JAX's own splash attention, told who sees whom.

The pattern becomes a mask that the kernel computes from indices, so blocks
between two branches are skipped and no mask is in memory; segments go to it as
they are. What the kernel wants otherwise is done here: a length that its blocks
divide, heads before tokens, a scaled q.
"""

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp
import numpy as np

from pallas_kernels import blocks

_NAME = "flash_attention"
_DTYPES = (jnp.float32, jnp.bfloat16)


def attend(q, k, v, segments, spec, *, interpret=False):
  """Returns out [R, L, H, d] in the dtype of q; see reference.py.

  Raises:
    blocks.Unsupported: for other dtypes, and blocks that are no multiple of
      128 tokens.
  """
  if q.dtype not in _DTYPES:
    raise blocks.Unsupported(
      f"{_NAME}: splash attention takes float32 and bfloat16, got {q.dtype};"
      " use impl='xla'."
    )
  length = q.shape[1]
  tile = spec.block or _tile(length)
  if tile % blocks.LANES:
    raise blocks.Unsupported(
      f"{_NAME}: a block of splash attention is a multiple of {blocks.LANES},"
      f" got {tile}."
    )
  padding = -length % tile
  q = (q.astype(jnp.float32) * spec.scale).astype(q.dtype)

  def laid(x):
    x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)

  # Padding behind a row is later than all of it: nothing sees it.
  mask = _Mask(spec.pattern, length + padding)
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([mask] * q.shape[2]),
    block_sizes=_sizes(tile),
    attn_logits_soft_cap=spec.softcap,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  operands = [laid(x) for x in (q, k, v)]
  if segments is not None:
    segments = jnp.pad(segments, ((0, 0), (0, padding)))
    operands.append(splash_attention.SegmentIds(segments, segments))
  return jax.vmap(kernel)(*operands).swapaxes(1, 2)[:, :length]


class _Mask(splash_attention.Mask):
  """A pattern that the kernel computes from what it has of both tokens.

  Of a query that is one integer, q_sequence: branch << bits | place.
  """

  def __init__(self, pattern, length):
    self._key = pattern, length
    branch = pattern.shifts(length) // max(pattern.branch, 1)
    bits = int(pattern.places(length).max()).bit_length()
    self.q_sequence = branch << bits | pattern.places(length)

    def mask_function(query, key):
      shift = (query >> bits) * pattern.branch
      return pattern.allows(query & (2**bits - 1), shift, key)

    self.mask_function = mask_function

  @property
  def shape(self):
    return self._key[1], self._key[1]

  def __getitem__(self, index):
    rows, columns = index
    keys = np.arange(columns.start, columns.stop, dtype=np.int32)
    return self.mask_function(self.q_sequence[rows][:, None], keys[None])

  # Equal masks are one: JAX keeps what it found out about a mask.
  def __eq__(self, other):
    return isinstance(other, _Mask) and self._key == other._key

  def __hash__(self):
    return hash(self._key)


def _tile(length):
  return min(512, -(-length // blocks.LANES) * blocks.LANES)


def _sizes(tile):
  """The backward passes apart: fused, dq would be held once a key block."""
  return splash_attention.BlockSizes(
    block_q=tile,
    block_kv=tile,
    block_kv_compute=tile,
    block_q_dkv=tile,
    block_kv_dkv=tile,
    block_kv_dkv_compute=tile,
    block_q_dq=tile,
    block_kv_dq=tile,
  )
