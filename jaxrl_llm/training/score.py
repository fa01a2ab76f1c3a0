"""What the policy says about a rollout: one forward, prompts once per group.

Each group is one packed row [prompt | completion 1 | ... | completion G], or,
where the rollout brings a packing, its real tokens lie side by side. The head
is applied on completion positions only, and log-probabilities and entropy come
from one pass of pallas_kernels' token_logprob: logits [N, T, V] never exist
(contract 7).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl_llm import types
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import api, cache, packed
from jaxrl_llm.training import vocabulary_kl
from pallas_kernels import token_logprob

_TENSOR = sharding.RULES["vocab"]

# (params, rollout), and the frozen reference's parameters for "reference_kl".
ScoreFn = Callable[..., types.Scores]


def make_score(
  model: api.LanguageModel,
  *,
  temperature: float = 1.0,
  needs: frozenset[str] = frozenset(),
) -> ScoreFn:
  """Builds score(params, rollout, reference=None) -> Scores.

  Args:
    model: the decoder.
    temperature: that of the sampler; logits are divided by it.
    needs: "entropy", "hidden", "prompt_logprobs" and "reference_kl", with
      "collision" beside it, are computed only when named here.

  Returns:
    A jittable function; "reference_kl" alone needs `reference`, parameters that
    get no gradient. rollout.group_size rows share each prompt; the rows of
    the rollout must be a multiple of it. Log-probabilities are float32 and 0
    outside the mask.
  """

  def prompt_logprobs(params, rollout):
    group = rollout.group_size
    tokens, mask = rollout.prompts[::group], rollout.prompt_mask[::group]
    rows = cache.Causal(mask)
    hidden, _ = model.apply(params, tokens, rows.positions(), rows)
    # The first token of a prompt is predicted by none.
    real = (mask[:, 1:] & mask[:, :-1]).reshape(-1)
    out = _token_logprob(
      hidden[:, :-1].reshape(-1, hidden.shape[2]),
      model.head(params),
      tokens[:, 1:].reshape(-1),
      real,
      inv_temperature=1.0 / temperature,
      softcap=model.config.final_softcap,
      with_entropy=False,
    )
    found = out.logprob.reshape(len(tokens), -1)
    return jnp.repeat(jnp.pad(found, ((0, 0), (1, 0))), group, axis=0)

  def compared(params, reference, rollout, hidden, real):
    if reference is None:
      raise ValueError(
        "score needs the reference for 'reference_kl', got None."
      )
    reference = jax.lax.stop_gradient(reference)
    predict = _padded_tokens if rollout.packing is None else _packed_tokens
    return _vocabulary_kl(
      hidden,
      model.head(params),
      predict(model, reference, rollout)[0],
      model.head(reference),
      real,
      inv_temperature=1.0 / temperature,
      softcap=model.config.final_softcap,
    )

  def score(params, rollout, reference=None):
    padded = rollout.packing is None
    predict = _padded_tokens if padded else _packed_tokens
    hidden, chosen, real, spread = predict(model, params, rollout)
    out = _token_logprob(
      hidden,
      model.head(params),
      chosen,
      real,
      inv_temperature=1.0 / temperature,
      softcap=model.config.final_softcap,
      with_entropy="entropy" in needs,
    )
    asked = "prompt_logprobs" in needs
    found = {}
    if "reference_kl" in needs:
      kl, collision = compared(params, reference, rollout, hidden, real)
      found["reference_kl"] = spread(kl)
      if "collision" in needs:
        found["collision"] = spread(collision)
    return types.Scores(
      prompt_logprobs=prompt_logprobs(params, rollout) if asked else None,
      logprobs=spread(out.logprob),
      entropy=spread(out.entropy) if "entropy" in needs else None,
      hidden=spread(hidden) if "hidden" in needs else None,
      vocab_size=model.config.vocab_size,
      **found,
    )

  return score


def _padded_tokens(model, params, rollout):
  """Hidden states [M, D], chosen tokens [M], which are real, and the way back.

  M = N T; the way back is a function [M, ...] -> [N, T, ...].
  """
  hidden = completion_hidden(model, params, rollout)
  shape = rollout.mask.shape

  def spread(x):
    return x.reshape(*shape, *x.shape[1:])

  flat = hidden.reshape(-1, hidden.shape[2])
  return flat, rollout.completions.reshape(-1), rollout.mask.reshape(-1), spread


def _packed_tokens(model, params, rollout):
  """As _padded_tokens with M = P m: chosen tokens, and few others."""
  packing = rollout.packing
  blocks, count = packing.chosen.shape
  rows = packed.Packed(packing.rows, packing.segments, packing.places)
  hidden, _ = model.apply(params, packing.tokens, packing.positions, rows)
  hidden = packed.taken(hidden, packing.before).reshape(blocks * count, -1)
  index = packing.index.reshape(blocks, -1)

  def spread(x):
    x = packed.taken(x.reshape(blocks, count, *x.shape[1:]), index)
    x = x.reshape(*rollout.mask.shape, *x.shape[2:])
    mask = rollout.mask.reshape(rollout.mask.shape + (1,) * (x.ndim - 2))
    return jnp.where(mask, x, 0)

  return hidden, packing.chosen.reshape(-1), packing.real.reshape(-1), spread


def _token_logprob(hidden, head, targets, mask, **options):
  """The op, on each device's own rows and slice of the vocabulary.

  Left to the partitioner, every chunk of the vocabulary would move the hidden
  states of all devices; a Pallas kernel could not be partitioned at all.
  """
  mesh = sharding.mesh_in_use()
  if mesh is None:
    return token_logprob.token_logprob(
      hidden, head, targets, mask=mask, **options
    )
  rows = sharding.partition(("rows",), targets.shape, mesh)
  vocab = head.shape[0]
  head = jnp.pad(head, ((0, -vocab % mesh.shape[_TENSOR]), (0, 0)))

  def local(hidden, head, targets, mask):
    return token_logprob.token_logprob_sharded(
      hidden,
      head,
      targets,
      axis_name=_TENSOR,
      vocab=vocab,
      mask=mask,
      **options,
    )

  return jax.shard_map(
    local,
    in_specs=(
      PartitionSpec(*rows, None),
      PartitionSpec(_TENSOR, None),
      rows,
      rows,
    ),
    out_specs=rows,
  )(hidden, head, targets, mask)


def _vocabulary_kl(
  hidden, head, reference_hidden, reference_head, mask, **knobs
):
  """The same for the KL over the vocabulary, whose logits are cut likewise."""
  mesh = sharding.mesh_in_use()
  inputs = hidden, head, reference_hidden, reference_head, mask
  if mesh is None:
    return vocabulary_kl.vocabulary_kl(*inputs, **knobs)
  rows = sharding.partition(("rows",), mask.shape, mesh)
  vocab = head.shape[0]
  pad = ((0, -vocab % mesh.shape[_TENSOR]), (0, 0))
  hidden_spec = PartitionSpec(*rows, None)
  head_spec = PartitionSpec(_TENSOR, None)

  def local(*inputs):
    return vocabulary_kl.vocabulary_kl(
      *inputs, axis_name=_TENSOR, vocab=vocab, **knobs
    )

  return jax.shard_map(
    local,
    in_specs=(hidden_spec, head_spec, hidden_spec, head_spec, rows),
    out_specs=rows,
  )(
    hidden,
    jnp.pad(head, pad),
    reference_hidden,
    jnp.pad(reference_head, pad),
    mask,
  )


def completion_hidden(
  model: api.LanguageModel, params: api.Params, rollout: types.Rollout
) -> jax.Array:
  """Hidden states [N, T, D] that predict each completion token.

  Position 0 is predicted by the prompt's last token, position t by completion
  token t - 1, so the last completion token is never fed.
  """
  group = rollout.group_size
  prompts = rollout.prompts[::group]
  prompt_mask = rollout.prompt_mask[::group]
  count, prompt_length = prompts.shape
  fed = rollout.completions.shape[1] - 1
  if fed == 0:
    rows = cache.Causal(prompt_mask)
    hidden, _ = model.apply(params, prompts, rows.positions(), rows)
    return jnp.repeat(hidden[:, -1:], group, axis=0)
  own = jnp.where(rollout.mask[:, :-1], rollout.completions[:, :-1], 0)
  groups = cache.Grouped(prompt_mask, group_size=group, length=fed)
  tokens = jnp.concatenate([prompts, own.reshape(count, group * fed)], axis=1)
  hidden, _ = model.apply(params, tokens, groups.positions(), groups)
  first = jnp.repeat(hidden[:, prompt_length - 1], group, axis=0)
  rest = hidden[:, prompt_length:].reshape(count * group, fed, -1)
  return jnp.concatenate([first[:, None], rest], axis=1)
