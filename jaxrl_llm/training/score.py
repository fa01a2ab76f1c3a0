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
from jaxrl_llm.methods import base
from jaxrl_llm.models import api, cache, mtp
from jaxrl_llm.training import feeding, inner_layer, vocabulary_kl
from pallas_kernels import token_logprob

_TENSOR = sharding.RULES["vocab"]

# (params, rollout), and by name what only some methods need: see make_score.
ScoreFn = Callable[..., types.Scores]


def make_score(
  model: api.LanguageModel,
  *,
  temperature: float = 1.0,
  needs: frozenset[str] = frozenset(),
  head: api.Head | None = None,
) -> ScoreFn:
  """Builds score(params, rollout, reference=None, head_params=None).

  Args:
    model: the decoder.
    temperature: that of the sampler; logits are divided by it.
    needs: those of a method; the fields of Scores are computed only when
      named here, those of a head where a call brings its parameters, too.
      "token_hidden" feeds one token more.
    head: of the method.

  Returns:
    A jittable function; "reference_kl" alone needs `reference`, parameters that
    get no gradient, and what a head finds `head_params`. rollout.group_size
    rows share each prompt; the rows of the rollout must be a multiple of it.
    Log-probabilities are float32 and 0 outside the mask.

  Raises:
    ValueError: for an inner layer that the model does not have.
  """
  return _Scorer(model, temperature, needs, head).score


class _Scorer:
  """What make_score was given, and one function a need."""

  def __init__(self, model, temperature, needs, head):
    self._model, self._needs, self._head = model, needs, head
    self._tap = inner_layer.make_tap(model, needs)
    self._logits = {
      "inv_temperature": 1.0 / temperature,
      "softcap": model.config.final_softcap,
    }

  def score(self, params, rollout, reference=None, head_params=None):
    """See make_score."""
    model, needs, tap = self._model, self._needs, self._tap
    if rollout.packing is None:
      fed = feeding.padded(rollout, last="token_hidden" in needs)
    else:
      base.check_packed(needs)
      fed = feeding.packed(rollout)
    if tap is None:
      states, _ = model.apply(params, fed.tokens, fed.positions, fed.rows)
    else:
      states, streams = tap.apply(params, fed)
    hidden = fed.before(states)
    out = self._chosen(
      hidden, model.head(params), fed, with_entropy="entropy" in needs
    )
    found = {}
    if "prompt_logprobs" in needs:
      found["prompt_logprobs"] = self._prompts(params, rollout)
    if "reference_kl" in needs:
      found |= self._compared(params, reference, fed, hidden)
    if head_params is not None:
      found |= self._of_head(params, rollout, fed, states, head_params)
    if tap is not None:
      apart = tap.divergences(params, fed, hidden, streams, **self._logits)
      found |= {name: fed.spread(x) for name, x in apart.items()}
    return types.Scores(
      **found,
      logprobs=fed.spread(out.logprob),
      entropy=fed.spread(out.entropy) if "entropy" in needs else None,
      hidden=fed.spread(hidden) if "hidden" in needs else None,
      token_hidden=fed.own(states) if "token_hidden" in needs else None,
      prompt_hidden=fed.prompt(states) if "prompt_hidden" in needs else None,
      vocab_size=model.config.vocab_size,
    )

  def _chosen(self, hidden, matrix, fed, *, with_entropy=False):
    """Log-probs, and entropies, of the chosen tokens."""
    return _token_logprob(
      hidden,
      matrix,
      fed.chosen,
      fed.real,
      **self._logits,
      with_entropy=with_entropy,
    )

  def _prompts(self, params, rollout):
    """[N, S] log-probs of the prompts' own tokens."""
    group = rollout.group_size
    tokens, mask = rollout.prompts[::group], rollout.prompt_mask[::group]
    rows = cache.Causal(mask)
    hidden, _ = self._model.apply(params, tokens, rows.positions(), rows)
    # The first token of a prompt is predicted by none.
    real = (mask[:, 1:] & mask[:, :-1]).reshape(-1)
    out = _token_logprob(
      hidden[:, :-1].reshape(-1, hidden.shape[2]),
      self._model.head(params),
      tokens[:, 1:].reshape(-1),
      real,
      **self._logits,
      with_entropy=False,
    )
    found = out.logprob.reshape(len(tokens), -1)
    return jnp.repeat(jnp.pad(found, ((0, 0), (1, 0))), group, axis=0)

  def _compared(self, params, reference, fed, hidden):
    """The policy beside the reference, over the whole vocabulary."""
    if reference is None:
      raise ValueError(
        "score needs the reference for 'reference_kl', got None."
      )
    model, reference = self._model, jax.lax.stop_gradient(reference)
    states, _ = model.apply(reference, fed.tokens, fed.positions, fed.rows)
    kl, collision = vocabulary_kl.on_each_device(
      vocabulary_kl.vocabulary_kl,
      hidden,
      model.head(params),
      fed.before(states),
      model.head(reference),
      fed.real,
      **self._logits,
    )
    found = {"reference_kl": kl, "collision": collision}
    return {k: fed.spread(x) for k, x in found.items() if k in self._needs}

  def _of_head(self, params, rollout, fed, states, head_params):
    """What the method's head says."""
    head = self._head
    if "values" in self._needs:
      hidden = fed.spread(fed.before(states))
      return {"values": head.apply(head_params, hidden)}
    ahead, matrix = head.apply(
      head_params,
      self._model,
      params,
      fed.tokens,
      fed.previous(states),
      fed.positions,
      fed.later(),
      head.share(rollout),
    )
    out = self._chosen(fed.before(ahead), matrix, fed)
    seen = mtp.predicted(rollout)
    return {"mtp_logprobs": jnp.where(seen, fed.spread(out.logprob), 0.0)}


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


def completion_hidden(
  model: api.LanguageModel, params: api.Params, rollout: types.Rollout
) -> jax.Array:
  """Hidden states [N, T, D] that predict each completion token.

  Position 0 is predicted by the prompt's last token, position t by completion
  token t - 1, so the last completion token is never fed.
  """
  fed = feeding.padded(rollout)
  states, _ = model.apply(params, fed.tokens, fed.positions, fed.rows)
  return fed.spread(fed.before(states))
