"""How tokens attend: whole rows, packed groups, or one token at a time.

All compute the same function of a completion and its prompt; they differ in
what they read. `Causal` sees rows [R, L]. `Grouped` sees each prompt ONCE,
followed by its G completions side by side, so a group costs S + G * T tokens
instead of G * (S + T); packed.py does it without their padding. `Decode` sees
one new token a row; the G rows of a group share their prompt's keys and values.

The arithmetic is pallas_kernels.prefix_attention, or for long rows
flash_attention (attention.py says when); here are the keys and who may see
whom.
"""

from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.models import api, attention
from pallas_kernels import flash_attention, prefix_attention


def mask_positions(mask: Bool[Array, "R L"]) -> Int[Array, "R L"]:
  """Position of each true token counted from its row's first; 0 before it.

  The true tokens of a row are neighbours; padding is on either side.
  """
  first = jnp.argmax(mask, axis=1).astype(jnp.int32)
  index = jnp.arange(mask.shape[1], dtype=jnp.int32)
  return jnp.maximum(index[None] - first[:, None], 0)


@struct.dataclass
class Causal:
  """Rows that attend to their own past.

  Attributes:
    mask: [R, L] true on real tokens; padding may stand on either side.
    keep: return keys and values, so that `prompt` can make a Decode of them.
  """

  mask: Bool[Array, "R L"]
  kept: Any = None
  keep: bool = struct.field(pytree_node=False, default=False)

  def positions(self) -> Int[Array, "R L"]:
    """Rotary positions, restarted in every row."""
    return mask_positions(self.mask)

  def layers(self):
    """Nothing is read from the past."""
    return None

  def attend(self, layer, q, k, v, *, scale, softcap=None, window=None):
    """See api.Cache."""
    del layer
    chex.assert_rank([q, k, v], 4)
    knobs = {"scale": scale, "softcap": softcap}
    kept = (_by_head(k), _by_head(v)) if self.keep else None
    if attention.is_long(q.shape[1] ** 2):
      pattern = flash_attention.Pattern()
      out = attention.long_rows(
        *(q, k, v, self.mask), pattern=pattern, window=window, **knobs
      )
      return out, kept
    allowed = causal(self.mask, window, self.positions())
    return short_rows(q, k, v, allowed, **knobs), kept

  def updated(self, kept):
    """See api.Cache."""
    return self.replace(kept=kept)

  def plain_rows(self) -> api.PlainRows:
    """They are so already."""
    return api.PlainRows(
      lay=lambda x: x,
      segments=self.mask.astype(jnp.int32),
      first=0,
      back=lambda y: y,
    )


@struct.dataclass
class Grouped:
  """One packed row a prompt: [prompt | completion 1 | ... | completion G].

  Attributes:
    prompt_mask: [B, S] true on prompt tokens (left-padded).
    group_size: G.
    length: tokens of each completion that are fed, C; L = S + G * C.
  """

  prompt_mask: Bool[Array, "B S"]
  group_size: int = struct.field(pytree_node=False)
  length: int = struct.field(pytree_node=False)

  def positions(self) -> Int[Array, "B L"]:
    """Every completion goes on counting where its prompt ends."""
    prompt = mask_positions(self.prompt_mask)
    start = self.prompt_mask.sum(axis=1, dtype=jnp.int32)[:, None]
    own = jnp.tile(jnp.arange(self.length, dtype=jnp.int32), self.group_size)
    return jnp.concatenate([prompt, start + own[None]], axis=1)

  def layers(self):
    """Nothing is read from the past."""
    return None

  def attend(self, layer, q, k, v, *, scale, softcap=None, window=None):
    """See api.Cache."""
    del layer
    knobs = {"scale": scale, "softcap": softcap, "window": window}
    if attention.is_long(self._scores()):
      pattern = flash_attention.Pattern(
        prefix=self.prompt_mask.shape[1], branch=self.length
      )
      mask = self._mask()
      return attention.long_rows(q, k, v, mask, pattern=pattern, **knobs), None
    return self._short(q, k, v, **knobs), None

  def _scores(self):
    """Of one head of a row."""
    size, own = self.prompt_mask.shape[1], self.group_size * self.length
    return size * size + own * (size + self.length)

  def _mask(self):
    """[B, L] true but on the padding of prompts."""
    rows, own = self.prompt_mask.shape[0], self.group_size * self.length
    return jnp.concatenate(
      [self.prompt_mask, jnp.ones((rows, own), bool)], axis=1
    )

  def _short(self, q, k, v, *, scale, softcap, window):
    """The prompt attends, then all completions to it and to themselves."""
    size = self.prompt_mask.shape[1]
    knobs = {"scale": scale, "softcap": softcap, "window": window}
    prompt = [x[:, :size] for x in (q, k, v)]
    first, keys = Causal(self.prompt_mask, keep=True).attend(
      None, *prompt, **knobs
    )
    count = q.shape[0] * self.group_size
    own_q, own_k, own_v = (
      x[:, size:].reshape(count, self.length, *x.shape[2:]) for x in (q, k, v)
    )
    to_prompt, to_own = self._allowed(window)
    parts = [
      prefix_attention.Part(
        *keys, _for_group(to_prompt, own_q, k, window, rows=k.shape[0])
      ),
      prefix_attention.Part(
        _by_head(own_k), _by_head(own_v), _for_heads(to_own, own_q, k)
      ),
    ]
    second = prefix_attention.attend(
      _queries(own_q, k.shape[2]), parts, scale=scale, softcap=softcap
    )
    second = _outputs(second, own_q).reshape(q[:, size:].shape)
    return jnp.concatenate([first, second], axis=1)

  def _allowed(self, window):
    """To the prompt, [B, 1, S] or [N, C, S]; to own tokens, [1 or N, C, C]."""
    past = jnp.tri(self.length, dtype=bool)[None]
    if window is None:
      return self.prompt_mask[:, None], past
    size, count = self.prompt_mask.shape[1], self.group_size
    positions = self.positions()
    prompt = jnp.repeat(positions[:, :size], count, axis=0)[:, None]
    own = positions[:, size:].reshape(-1, self.length)
    mask = jnp.repeat(self.prompt_mask, count, axis=0)[:, None]
    near = own[:, :, None] - prompt < window.tokens()
    return mask & near, past & (
      own[:, :, None] - own[:, None] < window.tokens()
    )

  def updated(self, kept):
    """See api.Cache."""
    del kept
    return self

  def plain_rows(self) -> api.PlainRows:
    """[prompt | completion]; from the prompt's last token on, which predicts.

    All G of a group are the same there: the first one's is taken.
    """
    size, count = self.prompt_mask.shape[1], self.group_size
    rows = self.prompt_mask.shape[0] * count

    def lay(x):
      prompt = jnp.repeat(x[:, :size], count, axis=0)
      own = x[:, size:].reshape(rows, self.length, *x.shape[2:])
      return jnp.concatenate([prompt, own], axis=1)

    def back(y):
      prompt = jnp.pad(y[::count, :1], ((0, 0), (size - 1, 0)))
      return jnp.concatenate(
        [prompt, y[:, 1:].reshape(len(prompt), -1)], axis=1
      )

    segments = lay(self._mask()).astype(jnp.int32)
    return api.PlainRows(lay=lay, segments=segments, first=size - 1, back=back)


@struct.dataclass
class Decode:
  """One new token a row; G rows share their prompt's keys and values.

  Attributes:
    prompt_k, prompt_v: [depth, B, K, S, d] from a `Causal(keep=True)` pass.
    prompt_mask: [B, S].
    own_k, own_v: [depth, N, K, T, d] of the completions so far.
    step: [] int32, tokens of the completions in the cache.
  """

  prompt_k: Float[Array, "L B K S d"]
  prompt_v: Float[Array, "L B K S d"]
  prompt_mask: Bool[Array, "B S"]
  own_k: Float[Array, "L N K T d"]
  own_v: Float[Array, "L N K T d"]
  step: Int[Array, ""]

  def positions(self) -> Int[Array, "N 1"]:
    """Position of the token that is fed next."""
    start = self.prompt_mask.sum(axis=1, dtype=jnp.int32)
    group = self.own_k.shape[1] // start.shape[0]
    return jnp.repeat(start, group)[:, None] + self.step

  def layers(self):
    """Keys and values of each layer."""
    return self.prompt_k, self.prompt_v, self.own_k, self.own_v

  def attend(self, layer, q, k, v, *, scale, softcap=None, window=None):
    """See api.Cache."""
    prompt_k, prompt_v, own_k, own_v = layer
    to_prompt, to_own = self._allowed(window)
    to_prompt = _for_group(to_prompt, q, k, window, rows=prompt_k.shape[0])
    k, v = _by_head(k), _by_head(v)
    parts = [
      prefix_attention.Part(prompt_k, prompt_v, to_prompt),
      prefix_attention.Part(own_k, own_v, to_own[:, None]),
      prefix_attention.Part(k, v, jnp.ones((1, 1, 1, 1), bool)),
    ]
    out = prefix_attention.attend(
      _queries(q, k.shape[1]), parts, scale=scale, softcap=softcap
    )
    return _outputs(out, q), (k, v)

  def _allowed(self, window):
    """To the prompt, [B, 1, S] or [N, 1, S]; to own tokens, [1, 1, T]."""
    age = self.step - jnp.arange(self.own_k.shape[3])[None, None]
    to_own = age > 0
    if window is None:
      return self.prompt_mask[:, None], to_own
    group = self.own_k.shape[1] // self.prompt_mask.shape[0]
    mask = jnp.repeat(self.prompt_mask, group, axis=0)[:, None]
    prompt = jnp.repeat(mask_positions(self.prompt_mask), group, axis=0)
    distance = self.positions()[:, :, None] - prompt[:, None]
    tokens = window.tokens()
    return mask & (distance < tokens), to_own & (age < tokens)

  def updated(self, kept):
    """Writes the new token's keys and values at `step`, in place."""
    k, v = kept

    def write(cache, new):
      return jax.lax.dynamic_update_slice_in_dim(
        cache, new.astype(cache.dtype), self.step, axis=3
      )

    return self.replace(
      own_k=write(self.own_k, k),
      own_v=write(self.own_v, v),
      step=self.step + 1,
    )


def decode_after(prompt: Causal, *, group_size: int, length: int) -> Decode:
  """An empty cache for `group_size` completions of each prefilled prompt.

  Args:
    prompt: the cache that apply() returned for Causal(mask, keep=True).
    group_size: G.
    length: tokens that will be fed, at most (T - 1 for T completion tokens).
  """
  k, v = prompt.kept
  depth, prompts, kv_heads, _, dim = k.shape
  shape = (depth, prompts * group_size, kv_heads, length, dim)
  return Decode(
    prompt_k=k,
    prompt_v=v,
    prompt_mask=prompt.mask,
    own_k=jnp.zeros(shape, k.dtype),
    own_v=jnp.zeros(shape, v.dtype),
    step=jnp.zeros((), jnp.int32),
  )


def short_rows(q, k, v, allowed, *, scale, softcap=None):
  """Attention with all scores at once; allowed [R, L, L]. As api.Cache."""
  part = prefix_attention.Part(
    _by_head(k), _by_head(v), _for_heads(allowed, q, k)
  )
  out = prefix_attention.attend(
    _queries(q, k.shape[2]), [part], scale=scale, softcap=softcap
  )
  return _outputs(out, q)


def causal(mask, window, positions):
  """[R, L, L]: who sees whom in rows of one sequence each."""
  allowed = jnp.tri(mask.shape[1], dtype=bool)[None] & mask[:, None]
  if window is None:
    return allowed
  return allowed & (
    positions[:, :, None] - positions[:, None] < window.tokens()
  )


def _by_head(x):
  return x.swapaxes(1, 2)


def _queries(q, kv_heads):
  """[R, L, H, d] -> [R, K, h * L, d]: the h heads of a key head together."""
  rows, length, heads, dim = q.shape
  q = q.reshape(rows, length, kv_heads, heads // kv_heads, dim)
  return q.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, dim)


def _outputs(out, q):
  """The inverse of _queries, in the shape and dtype of q."""
  rows, length, heads, dim = q.shape
  out = out.reshape(rows, heads, length, dim).swapaxes(1, 2)
  return out.astype(q.dtype)


def _for_heads(allowed, q, k):
  """[R, L, S] -> [R, 1, h * L, S], as _queries orders them."""
  return jnp.tile(allowed, (1, q.shape[2] // k.shape[2], 1))[:, None]


def _for_group(allowed, q, k, window, *, rows):
  """Of a prompt's keys: [B, 1, S] -> [B, 1, 1, S]; with a window, which every
  query sees from its own place, [N, L, S] -> [B, 1, G * h * L, S]."""
  if window is None:
    return allowed[:, None]
  allowed = _for_heads(allowed, q, k)
  return allowed.reshape(rows, 1, -1, allowed.shape[-1])
