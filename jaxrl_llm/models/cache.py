"""How tokens attend: whole rows, packed groups, or one token at a time.

All three compute the same function of a completion and its prompt; they differ
in what they read. `Causal` sees rows [R, L]. `Grouped` sees each prompt ONCE,
followed by its G completions side by side, so a group costs S + G * T tokens
instead of G * (S + T). `Decode` sees one new token a row; the G rows of a group
share their prompt's keys and values.

Scores and softmax are float32. A masked score is -1e30, not -inf: a row of
padding then gives finite numbers that nobody reads.
"""

from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = -1e30


def mask_positions(mask: Bool[Array, "R L"]) -> Int[Array, "R L"]:
  """Position of each true token counted from its row's first; 0 on padding."""
  return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


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
    positions = self.positions()
    allowed = _causal(self.mask, window, positions)
    scores = _scores(_grouped_heads(q, k.shape[2]), k, scale, softcap)
    weights = _softmax(scores, allowed[:, None, None])
    out = _mix(weights, v).reshape(q.shape).astype(q.dtype)
    return out, (_by_head(k), _by_head(v)) if self.keep else None

  def updated(self, kept):
    """See api.Cache."""
    return self.replace(kept=kept)


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
    rows, _, heads, dim = q.shape
    prompt_length = self.prompt_mask.shape[1]
    keys = k[:, :prompt_length], v[:, :prompt_length]
    positions = self.positions()
    prompt = Causal(self.prompt_mask)
    first, _ = prompt.attend(
      None,
      q[:, :prompt_length],
      *keys,
      scale=scale,
      softcap=softcap,
      window=window,
    )

    def members(x):
      return x[:, prompt_length:].reshape(
        rows * self.group_size, self.length, x.shape[2], dim
      )

    own_q = _grouped_heads(members(q), k.shape[2])
    own_k, own_v = members(k), members(v)
    shared = own_q.reshape(
      rows, self.group_size * self.length, *own_q.shape[2:]
    )
    to_prompt = _scores(shared, keys[0], scale, softcap)
    to_prompt = _split_group(to_prompt, self.group_size)
    to_own = _scores(own_q, own_k, scale, softcap)
    allowed = self._allowed(positions, window)
    weights = _softmax(
      jnp.concatenate([to_prompt, to_own], axis=-1), allowed[:, None, None]
    )
    from_prompt = _mix(
      _join_group(weights[..., :prompt_length], self.group_size), keys[1]
    )
    from_own = _mix(weights[..., prompt_length:], own_v)
    second = from_prompt.reshape(from_own.shape) + from_own
    second = second.reshape(rows, -1, heads, dim).astype(q.dtype)
    return jnp.concatenate([first, second], axis=1), None

  def _allowed(self, positions, window):
    """[N, C, S + C]: the whole prompt, and the own tokens so far."""
    prompt_length = self.prompt_mask.shape[1]
    count = self.prompt_mask.shape[0] * self.group_size
    past = jnp.tri(self.length, dtype=bool)
    to_own = jnp.broadcast_to(past[None], (count, self.length, self.length))
    to_prompt = jnp.repeat(self.prompt_mask, self.group_size, axis=0)
    to_prompt = jnp.broadcast_to(
      to_prompt[:, None], (count, self.length, prompt_length)
    )
    allowed = jnp.concatenate([to_prompt, to_own], axis=-1)
    if window is None:
      return allowed
    prompt = jnp.repeat(positions[:, :prompt_length], self.group_size, axis=0)
    own = positions[:, prompt_length:].reshape(count, self.length)
    keys = jnp.concatenate([prompt, own], axis=1)
    return allowed & (own[:, :, None] - keys[:, None] < window)

  def updated(self, kept):
    """See api.Cache."""
    del kept
    return self


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
    count, _, heads, dim = q.shape
    kv_heads = k.shape[2]
    prompts, _, prompt_length, _ = prompt_k.shape
    group = count // prompts
    q = q.reshape(count, kv_heads, heads // kv_heads, dim)
    k, v = _by_head(k), _by_head(v)
    shared = q.reshape(prompts, group, kv_heads, -1, dim).swapaxes(1, 2)
    shared = shared.reshape(prompts, kv_heads, -1, dim)
    to_prompt = _dot("bkqd,bksd->bkqs", shared, prompt_k)
    to_prompt = to_prompt.reshape(
      prompts, kv_heads, group, -1, prompt_length
    ).swapaxes(1, 2)
    scores = jnp.concatenate(
      [
        to_prompt.reshape(count, kv_heads, -1, prompt_length),
        _dot("nkhd,nktd->nkht", q, own_k),
        _dot("nkhd,nktd->nkht", q, k),
      ],
      axis=-1,
    )
    weights = _softmax(
      _capped(scores * scale, softcap), self._allowed(window)[:, None, None]
    ).astype(v.dtype)
    first = weights[..., :prompt_length].reshape(
      prompts, group, kv_heads, -1, prompt_length
    )
    first = first.swapaxes(1, 2).reshape(prompts, kv_heads, -1, prompt_length)
    out = _dot("bkqs,bksd->bkqd", first, prompt_v)
    out = out.reshape(prompts, kv_heads, group, -1, dim).swapaxes(1, 2)
    out = out.reshape(count, kv_heads, -1, dim)
    out += _dot("nkht,nktd->nkhd", weights[..., prompt_length:-1], own_v)
    out += weights[..., -1:].astype(out.dtype) * v.astype(out.dtype)
    return out.reshape(count, 1, heads, dim).astype(q.dtype), (k, v)

  def _allowed(self, window):
    """[N, S + T + 1]: the prompt, the own tokens so far, the new one."""
    count, length = self.own_k.shape[1], self.own_k.shape[3]
    group = count // self.prompt_mask.shape[0]
    prompt = jnp.repeat(self.prompt_mask, group, axis=0)
    own = jnp.arange(length) < self.step
    own = jnp.broadcast_to(own[None], (count, length))
    new = jnp.ones((count, 1), bool)
    allowed = jnp.concatenate([prompt, own, new], axis=1)
    if window is None:
      return allowed
    position = self.positions()
    keys = jnp.concatenate(
      [
        jnp.repeat(mask_positions(self.prompt_mask), group, axis=0),
        position - self.step + jnp.arange(length)[None],
        position,
      ],
      axis=1,
    )
    return allowed & (position - keys < window)

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


def _dot(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _by_head(x):
  return x.swapaxes(1, 2)


def _grouped_heads(q, kv_heads):
  rows, length, heads, dim = q.shape
  return q.reshape(rows, length, kv_heads, heads // kv_heads, dim)


def _scores(q, k, scale, softcap):
  scores = _dot("rqkhd,rskd->rkhqs", q, k)
  return _capped(scores * scale, softcap)


def _capped(scores, softcap):
  return softcap * jnp.tanh(scores / softcap) if softcap else scores


def _softmax(scores, allowed):
  scores = jnp.where(allowed, scores, _MASKED)
  return jax.nn.softmax(scores, axis=-1)


def _mix(weights, v):
  return _dot("rkhqs,rskd->rqkhd", weights.astype(v.dtype), v)


def _causal(mask, window, positions):
  allowed = jnp.tri(mask.shape[1], dtype=bool)[None] & mask[:, None]
  if window is None:
    return allowed
  return allowed & (positions[:, :, None] - positions[:, None] < window)


def _split_group(scores, group_size):
  """[B, K, h, G * C, S] -> [B * G, K, h, C, S]."""
  rows, kv_heads, per, length, keys = scores.shape
  scores = scores.reshape(
    rows, kv_heads, per, group_size, length // group_size, keys
  )
  return jnp.moveaxis(scores, 3, 1).reshape(
    rows * group_size, kv_heads, per, -1, keys
  )


def _join_group(weights, group_size):
  """[B * G, K, h, C, S] -> [B, K, h, G * C, S]."""
  count, kv_heads, per, length, keys = weights.shape
  weights = weights.reshape(
    count // group_size, group_size, kv_heads, per, length, keys
  )
  return jnp.moveaxis(weights, 1, 3).reshape(
    count // group_size, kv_heads, per, -1, keys
  )
