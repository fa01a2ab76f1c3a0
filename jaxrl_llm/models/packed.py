"""How tokens attend that lie side by side without padding.

Projections, MLPs and norms see each token once, in no rows; to attend, tokens
are laid by index in rows of sequences, [prompt | completion] each. What the
index is, rollout/packing.py decides.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import api, attention, cache
from pallas_kernels import flash_attention


@struct.dataclass
class Packed:
  """Tokens side by side, laid by index in rows of sequences to attend.

  A prompt is in `tokens` once and in rows as often as it has completions: each
  sequence [prompt | completion] is a segment, in which attention is causal. See
  types.Packing.

  Attributes:
    rows: [P, r, L] the token of each place of the rows.
    segments: [P, r, L] of the row's sequences; 0 on padding.
    places: [P, n] the place of each token in the rows, [r * L].
  """

  rows: Int[Array, "P r L"]
  segments: Int[Array, "P r L"]
  places: Int[Array, "P n"]

  def layers(self):
    """Nothing is read from the past."""
    return None

  def attend(self, layer, q, k, v, *, scale, softcap=None, window=None):
    """See api.Cache."""
    del layer
    width = None if window is None else window.width

    def attend(q, k, v, rows, segments, places, here):
      window = None if width is None else api.Window(width, here)
      knobs = {"scale": scale, "softcap": softcap, "window": window}
      laid = [_laid(x, rows) for x in (q, k, v)]
      segments = segments.reshape(laid[0].shape[:2])
      if attention.is_long(segments.shape[1] ** 2):
        pattern = flash_attention.Pattern()
        out = attention.long_rows(*laid, segments, pattern=pattern, **knobs)
      else:
        out = _short(*laid, segments, **knobs)
      return taken(out.reshape(len(rows), -1, *out.shape[2:]), places)

    by_row = self.rows, self.segments, self.places
    here = None if window is None else window.here
    return attention.on_each_device(attend, q, k, v, *by_row, here=here), None

  def updated(self, kept):
    """See api.Cache."""
    del kept
    return self

  def before(self, x: Array) -> Array:
    """[P, n, ...] of tokens -> of the token before each in its sequence.

    A first token gets anything.
    """
    rows = self.rows.reshape(len(self.rows), -1)
    return taken(x, taken(rows, jnp.maximum(self.places - 1, 0)))

  def later(self) -> "Packed":
    """The same without the first token of each sequence, which none sees."""
    ids = self.segments
    same = ids == jnp.pad(ids[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return self.replace(segments=jnp.where(same, ids, 0))

  def plain_rows(self) -> api.PlainRows:
    """The rows in which they attend."""
    blocks, length = len(self.rows), self.rows.shape[2]
    return api.PlainRows(
      lay=lambda x: _laid(x, self.rows),
      segments=self.segments.reshape(-1, length),
      first=0,
      back=lambda y: taken(y.reshape(blocks, -1), self.places),
    )


def taken(x: Array, index: Int[Array, "P m"]) -> Array:
  """[P, n, ...] -> [P, m, ...]: of each block the elements that are named."""

  def local(x, index):
    index = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  mesh = sharding.mesh_in_use()
  if mesh is None:
    return local(x, index)
  # Left to the partitioner, the blocks of all devices would be gathered.
  blocks = sharding.partition(("rows",), index.shape[:1], mesh)
  return jax.shard_map(local, in_specs=blocks, out_specs=blocks)(x, index)


def _laid(x, rows):
  """[P, n, h, d] -> [P r, L, h, d]."""
  out = taken(x, rows.reshape(len(rows), -1))
  return out.reshape(-1, rows.shape[2], *x.shape[2:])


def _short(q, k, v, segments, *, window, **knobs):
  """Causal within each segment; a segment's tokens are neighbours."""
  index = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
  allowed = cache.causal(segments >= 0, window, index)
  allowed &= segments[:, :, None] == segments[:, None]
  return cache.short_rows(q, k, v, allowed, **knobs)
