"""What a block attends to, recomputed from the stream before it.

The kernels of attention keep no probabilities. Where a method asks for those of
a layer, the block is run once more with a cache that attends to nothing and
hands out the queries and keys; from them the probabilities of a few tokens are
made at a time, forward and backward.
"""

from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.models import api
from jaxrl_llm.objectives import divergence

# Scores of a chunk of tokens, all rows, heads and keys.
_TILE = 2**23


@struct.dataclass
class Listener:
  """A cache that attends to nothing and keeps what it was asked."""

  def layers(self):
    """Nothing is read from the past."""
    return None

  def attend(self, layer, q, k, v, *, scale, softcap=None, window=None):
    """See api.Cache; what is kept is an api.Asked."""
    del layer, v
    asked = api.Asked(q=q, k=k, scale=scale, softcap=softcap, window=window)
    return jnp.zeros_like(q), asked

  def updated(self, kept):
    """See api.Cache."""
    del kept
    return self


def attention_weights(
  q: Float[Array, "R c H d"],
  k: Float[Array, "R L K d"],
  allowed: Bool[Array, "R c L"],
  *,
  scale: float,
  softcap: float | None = None,
) -> Float[Array, "R H c L"]:
  """softmax(cap(scale q k^T)) over the keys that are allowed, in float32.

  Args:
    q: some tokens' queries, rotary positions applied.
    k: all keys of the row.
    allowed: who sees whom; a row of a token that sees nobody is 0.
    scale, softcap: see api.Cache.
  """
  rows, count, heads, dim = q.shape
  q = q.reshape(rows, count, k.shape[2], -1, dim)
  kind = jnp.promote_types(q.dtype, jnp.float32)
  scores = jnp.einsum("rckhd,rlkd->rkhcl", q, k, preferred_element_type=kind)
  scores = scale * scores
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  allowed = allowed[:, None, None]
  low = jnp.finfo(kind).min
  top = jnp.where(allowed, scores, low).max(axis=-1, keepdims=True)
  top = jax.lax.stop_gradient(top)
  raised = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - top, 0)), 0)
  total = raised.sum(axis=-1, keepdims=True)
  out = raised / jnp.where(total > 0, total, 1)
  return out.reshape(rows, heads, count, -1)


def attention_jsd(
  rows: Any, inner: api.Asked, last: api.Asked, *, chunk: int | None = None
) -> Float[Array, "R L"]:
  """How differently two blocks attend, token by token, heads averaged.

    jensen_shannon(mean_h a_inner, mean_h a_last)

  Args:
    rows: the cache of the forward, with plain_rows().
    inner: of one block; the gradient goes into it alone.
    last: of the other.
    chunk: tokens of each row at a time; None: as many as have 2^23 scores.

  Returns:
    Nats, in [0, log 2], of the tokens that were fed; 0 on those prompt tokens
    that predict no completion's.
  """
  plain = rows.plain_rows()
  last = jax.lax.stop_gradient(last)
  keys = [plain.lay(asked.k) for asked in (inner, last)]
  queries = [plain.lay(asked.q)[:, plain.first :] for asked in (inner, last)]
  length = queries[0].shape[1]
  places = plain.first + jnp.arange(length)
  per_token = keys[0].shape[0] * keys[0].shape[1] * inner.q.shape[2]
  size = chunk or max(1, min(length, _TILE // per_token))

  @jax.checkpoint
  def of_a_chunk(part):
    one, two, places = part
    maps = [
      attention_weights(
        q,
        k,
        allowed_keys(plain.segments, places, asked.window),
        scale=asked.scale,
        softcap=asked.softcap,
      ).mean(axis=1)
      for q, k, asked in zip((one, two), keys, (inner, last), strict=True)
    ]
    return divergence.jensen_shannon(*maps)

  parts = [_cut(x, size) for x in (*queries, places[None])]
  found = jax.lax.map(of_a_chunk, (*parts[:2], parts[2][:, 0]))
  found = found.swapaxes(0, 1).reshape(found.shape[1], -1)[:, :length]
  return plain.back(found)


def allowed_keys(segments, places, window) -> Bool[Array, "R c L"]:
  """Causal within each segment; a segment's tokens are neighbours."""
  chex.assert_rank([segments, places], [2, 1])
  own = jnp.take(segments, places, axis=1, mode="clip")[:, :, None]
  back = places[:, None] - jnp.arange(segments.shape[1])[None]
  seen = back >= 0
  if window is not None:
    seen &= back < window.tokens()
  return seen[None] & (own == segments[:, None]) & (own > 0)


def _cut(x: Array, size: int) -> Array:
  """[R, L, ...] -> [chunks, R, size, ...], zeros behind."""
  pad = ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2)
  x = jnp.pad(x, pad)
  return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)
