"""How far one layer is from the final one: in its predictions and attention.

Through the final norm and the head a stream half way up is a distribution over
the vocabulary already. The gradient of both divergences is into the layers that
made it, and the final layer is a constant.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.models import api, attention_maps
from jaxrl_llm.training import feeding, vocabulary_kl

PREDICTIONS, ATTENTION = "layer_jsd", "attention_jsd"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tap:
  """A forward with what the divergences of one layer need.

  Attributes:
    model: the decoder.
    blocks: below the stream that is read, from 1 to the model's depth.
    flow: whether the final norm and the head learn from its predictions.
    wanted: out of PREDICTIONS and ATTENTION.
  """

  model: api.LanguageModel
  blocks: int
  flow: bool
  wanted: frozenset[str]

  def apply(
    self, params: api.Params, fed: feeding.Fed
  ) -> tuple[Float[Array, "R L D"], tuple[Float[Array, "R L D"], ...]]:
    """Final hidden states, and the streams that `divergences` takes."""
    after = [self.blocks]
    if ATTENTION in self.wanted:
      after += [self.blocks - 1, self.model.config.depth - 1]
    args = params, fed.tokens, fed.positions, fed.rows
    return self.model.tapped(*args, after=tuple(after))

  def divergences(
    self,
    params: api.Params,
    fed: feeding.Fed,
    hidden: Float[Array, "M D"],
    streams: tuple[Float[Array, "R L D"], ...],
    **knobs: Any,
  ) -> dict[str, Float[Array, "M"]]:
    """Those that are wanted, in nats, of the tokens that are scored.

    Args:
      params: of the policy.
      fed: what it was fed.
      hidden: the final states before those tokens.
      streams: from `apply`.
      **knobs: of vocabulary_kl.
    """
    if self.blocks == self.model.config.depth:  # the final layer itself
      return {name: jnp.zeros(len(fed.real)) for name in self.wanted}
    found = {}
    if PREDICTIONS in self.wanted:
      reader = params if self.flow else jax.lax.stop_gradient(params)
      found[PREDICTIONS] = vocabulary_kl.on_each_device(
        vocabulary_kl.vocabulary_jsd,
        fed.before(self.model.normed(reader, streams[0])),
        self.model.head(reader),
        hidden,
        self.model.head(params),
        fed.real,
        **knobs,
      )
    if ATTENTION in self.wanted:
      found[ATTENTION] = self._attention(params, fed, streams)
    return found

  def _attention(self, params, fed, streams):
    blocks = self.blocks - 1, self.model.config.depth - 1
    inner, last = (
      self.model.asked(params, stream, fed.positions, block=block)
      for block, stream in zip(blocks, streams[1:], strict=True)
    )
    per_token = attention_maps.attention_jsd(fed.rows, inner, last)
    return jnp.where(fed.real, fed.before(per_token), 0.0)


def make_tap(model: api.LanguageModel, needs: frozenset[Any]) -> Tap | None:
  """The tap that a method's needs ask for, or None.

  Args:
    model: the decoder.
    needs: of the method; a types.InnerLayer among them says which layer.

  Raises:
    ValueError: for a layer that the model does not have.
  """
  wanted = needs & {PREDICTIONS, ATTENTION}
  if not wanted:
    return None
  inner = next(
    (need for need in needs if isinstance(need, types.InnerLayer)),
    types.InnerLayer(),
  )
  depth = model.config.depth
  blocks = inner.layer or max(1, round(depth / 6))
  if not 1 <= blocks <= depth:
    raise ValueError(
      f"layer must be from 1 to {depth}, the blocks of this model, or 0 for a"
      f" sixth of them; got {inner.layer}."
    )
  return Tap(model=model, blocks=blocks, flow=inner.flow, wanted=wanted)
