"""Generates completions: prompts prefilled once, then one token a row a step.

The loop ends when every row has ended. The noise of a token is a function of
(key, sample id, position) and of nothing else, so a completion does not depend
on the batch that it is generated in (contract 2 of the design).
"""

from collections.abc import Callable, Sequence

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxrl_llm import types
from jaxrl_llm.distributed import fingerprint, sharding
from jaxrl_llm.models import api, cache, linear, lora
from jaxrl_llm.rollout import sampling


@struct.dataclass
class Generation:
  """N completions of T positions, groups contiguous.

  Attributes:
    completions: [N, T] token ids; the stop token is included, pad_id after it.
    mask: [N, T] true on chosen tokens, the stop token too.
    logprobs: [N, T] nats under the tempered distribution over the whole
      vocabulary: what a trainer with the same temperature computes; 0 after
      the end.
    behaviour_logprobs: [N, T] nats under the distribution that was drawn from
      (top-k, top-p and min-p included).
    finish_reason: [N] types.FINISH_STOP or types.FINISH_LENGTH.
    checksum: [N] fingerprint.checksum of what is trained, frozen in the
      sampler's dtype, as the sampler had it.
  """

  completions: Int[Array, "N T"]
  mask: Bool[Array, "N T"]
  logprobs: Float[Array, "N T"]
  behaviour_logprobs: Float[Array, "N T"]
  finish_reason: Int[Array, "N"]
  checksum: UInt32[Array, "N"] | None


GenerateFn = Callable[
  [api.Params, jax.Array, jax.Array, jax.Array, jax.Array], Generation
]


def token_uniforms(
  key: jax.Array, sample_ids: Int[Array, "N"], length: int
) -> Float[Array, "N T 2"]:
  """Two uniforms in [0, 1) for each token, from (key, sample id, position)."""

  def row(sample_id):
    # Threefry hashes (key, index) alone: entry t does not depend on T.
    row_key = jax.random.fold_in(key, sample_id)
    return jax.random.uniform(row_key, (length, 2))

  return jax.vmap(row)(sample_ids)


def make_generate(
  model: api.LanguageModel,
  draw: sampling.Rule,
  *,
  length: int,
  group_size: int,
  stop_ids: Sequence[int],
  pad_id: int,
) -> GenerateFn:
  """Builds generate(params, prompts, prompt_mask, sample_ids, key).

  Args:
    model: the decoder.
    draw: a rule from sampling.make_rule.
    length: T, most tokens of a completion.
    group_size: G, completions of each prompt.
    stop_ids: tokens that end a completion; may be empty.
    pad_id: fills positions after the end; may equal a stop id.

  Returns:
    A jittable function of params, prompts [B, S] (left-padded), prompt_mask
    [B, S], sample_ids [N] (distinct in a step) and a typed key for the step.
  """
  if length < 1:
    raise ValueError(f"length must be at least 1, got {length}.")
  stops = jnp.asarray(sorted(set(stop_ids)), jnp.int32)

  def ends(token):
    return (token[:, None] == stops[None]).any(axis=1)

  def prefill(params, prompts, prompt_mask):
    rows = cache.Causal(prompt_mask, keep=True)
    hidden, rows = model.apply(params, prompts, rows.positions(), rows)
    first = _logits(model, params, hidden[:, -1])
    past = cache.decode_after(rows, group_size=group_size, length=length - 1)
    return jnp.repeat(first, group_size, axis=0), past

  def generate(params, prompts, prompt_mask, sample_ids, key):
    chex.assert_equal_shape([prompts, prompt_mask])
    count = prompts.shape[0] * group_size
    chex.assert_shape(sample_ids, (count,))
    # Nothing is left to do for parameters from weight_sync on a mesh.
    params = linear.freeze(params, model.dtype)
    params = sharding.constrain_parameters(model.config, params)
    seen = _checksum(params)
    uniforms = token_uniforms(key, sample_ids, length)
    logits, past = prefill(params, prompts, prompt_mask)
    first = draw(logits, uniforms[:, 0])
    state = _begin(first, ends(first.token), past, length, pad_id)

    def unfinished(state):
      return (state.step < length) & ~state.done.all()

    def advance(state):
      hidden, past = model.apply(
        params, state.token[:, None], state.past.positions(), state.past
      )
      drawn = draw(
        _logits(model, params, hidden[:, 0]),
        jax.lax.dynamic_index_in_dim(uniforms, state.step, 1, False),
      )
      return _append(state, drawn, ends(drawn.token), past, pad_id)

    if length > 1:
      state = jax.lax.while_loop(unfinished, advance, state)
    return Generation(
      completions=state.tokens,
      mask=state.mask,
      logprobs=state.logprobs,
      behaviour_logprobs=state.behaviour,
      finish_reason=jnp.where(
        state.done, types.FINISH_STOP, types.FINISH_LENGTH
      ).astype(jnp.int32),
      checksum=None if seen is None else jnp.broadcast_to(seen, (count,)),
    )

  return generate


def _checksum(params):
  """Of what is trained; None where one device samples from what it trains."""
  trained = lora.trained(params)
  if trained is params and sharding.mesh_in_use() is None:
    return None
  return fingerprint.checksum(trained)


@struct.dataclass
class _State:
  step: jax.Array  # [] int32, position that is drawn next
  token: jax.Array  # [N] int32, fed next
  done: jax.Array  # [N] bool
  tokens: jax.Array  # [N, T] int32
  mask: jax.Array  # [N, T] bool
  logprobs: jax.Array  # [N, T] float32
  behaviour: jax.Array  # [N, T] float32
  past: cache.Decode


def _logits(model, params, hidden):
  """[N, D] -> [N, V] float32, soft-capped."""
  head = model.head(params)
  out = jnp.einsum(
    "nd,vd->nv",
    hidden.astype(head.dtype),
    head,
    preferred_element_type=jnp.float32,
  )
  # Said here, or each device would gather the whole head for each token.
  out = sharding.constrain(out, "rows", "vocab")
  cap = model.config.final_softcap
  out = cap * jnp.tanh(out / cap) if cap else out
  # The rule looks at whole rows: one gather of [N, V] for each token.
  return sharding.constrain(out, "rows", None)


def _begin(first, ended, past, length, pad_id):
  """The state when every row has its first token."""
  shape = (first.token.shape[0], length)
  blank = jnp.zeros(shape, jnp.float32)
  return _State(
    step=jnp.ones((), jnp.int32),
    token=first.token,
    done=ended,
    tokens=jnp.full(shape, pad_id, jnp.int32).at[:, 0].set(first.token),
    mask=jnp.zeros(shape, bool).at[:, 0].set(True),
    logprobs=blank.at[:, 0].set(first.logprob_full),
    behaviour=blank.at[:, 0].set(first.logprob),
    past=past,
  )


def _append(state, drawn, ended, past, pad_id):
  """The state with one token more in every row that has not ended."""
  live = ~state.done
  token = jnp.where(live, drawn.token, pad_id)
  full = jnp.where(live, drawn.logprob_full, 0.0)
  actual = jnp.where(live, drawn.logprob, 0.0)
  return _State(
    step=state.step + 1,
    token=token,
    done=state.done | ended,
    tokens=_put(state.tokens, state.step, token),
    mask=_put(state.mask, state.step, live),
    logprobs=_put(state.logprobs, state.step, full),
    behaviour=_put(state.behaviour, state.step, actual),
    past=past,
  )


def _put(array, column, values):
  return jax.lax.dynamic_update_slice_in_dim(
    array, values[:, None].astype(array.dtype), column, axis=1
  )
