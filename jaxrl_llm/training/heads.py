"""What is learnt beside the policy: a critic, or a module that predicts ahead.

A step learns two trees of parameters side by side, a `Pair`. Where the method
has no head the second one is None, an empty tree, and everything is as if it
were not there. They meet in the score and nowhere else, so the sampler, the
reference, the evaluation and an export are given the policy's alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxrl_llm.methods import base
from jaxrl_llm.models import api


class AuxiliaryHead(NamedTuple):
  """A method's head as it is learnt; score.make_score applies it.

  Attributes:
    init: () -> its parameters.
    optimizer: of them alone.
  """

  init: Callable[[], api.Params]
  optimizer: optax.GradientTransformation


class Pair(NamedTuple):
  """Parameters, gradients or optimizer states of policy and head."""

  policy: Any
  head: Any = None


def of_method(
  method: base.Method,
  model: api.LanguageModel,
  optimizer: Callable[[float], optax.GradientTransformation],
  *,
  key: jax.Array | None = None,
) -> AuxiliaryHead | None:
  """The head that a method learns, None if it has none.

  Args:
    method: as built.
    model: whose hidden states it reads.
    optimizer: learning rate over the policy's -> its optimizer.
    key: of its first parameters.
  """
  if method.head is None:
    return None
  key = jax.random.key(0) if key is None else key
  return AuxiliaryHead(
    init=lambda: method.head.init(key, model),
    optimizer=optimizer(method.head.rate),
  )


def side_by_side(
  policy: optax.GradientTransformation, head: AuxiliaryHead | None
) -> optax.GradientTransformation:
  """One optimizer over a Pair; neither sees the other's gradients.

  So a critic far from its target does not shrink the policy's step where
  gradients are clipped by their global norm.

  Args:
    policy: optimizer of the policy.
    head: with its own, or None.
  """

  def init(params):
    state = head.optimizer.init(params.head) if head else None
    return Pair(policy.init(params.policy), state)

  def update(grads, state, params):
    changes, own = policy.update(grads.policy, state.policy, params.policy)
    if head is None:
      return Pair(changes), Pair(own)
    head_changes, head_own = head.optimizer.update(
      grads.head, state.head, params.head
    )
    return Pair(changes, head_changes), Pair(own, head_own)

  return optax.GradientTransformation(init, update)
