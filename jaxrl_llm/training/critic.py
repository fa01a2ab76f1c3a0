"""A critic beside the policy: values for its scores, an optimizer of its own.

A step learns two trees of parameters side by side, a `Pair`. Where no method
needs values the second one is None, an empty tree, and everything is as if it
were not there. They meet in the loss and nowhere else, so the sampler, the
reference, the evaluation and an export are given the policy's alone.
"""

from typing import Any, NamedTuple

import optax

from jaxrl_llm import types
from jaxrl_llm.models import value_head
from jaxrl_llm.training import score as scoring


class Critic(NamedTuple):
  """What makes values, and how it is learnt.

  Attributes:
    head: on the policy's hidden states.
    width: D of those.
    optimizer: of its parameters alone.
  """

  head: value_head.ValueHead
  width: int
  optimizer: optax.GradientTransformation


class Pair(NamedTuple):
  """Parameters, gradients or optimizer states of policy and critic."""

  policy: Any
  critic: Any = None


def with_values(
  score: scoring.ScoreFn, critic: Critic | None, *, keep_hidden: bool = False
) -> scoring.ScoreFn:
  """Lifts a score function to one over a Pair of parameters.

  Args:
    score: of the policy; must compute hidden states if there is a critic.
    critic: None leaves values out.
    keep_hidden: whether anything else reads the hidden states.

  Returns:
    score(Pair, rollout) -> Scores, with values if there is a critic.
  """

  def scored(params: Pair, rollout: types.Rollout) -> types.Scores:
    scores = score(params.policy, rollout)
    if critic is None:
      return scores
    if scores.hidden is None:
      raise ValueError(
        "scores.hidden is None: make_score needs 'hidden' for a critic."
      )
    return scores.replace(
      values=critic.head.apply(params.critic, scores.hidden),
      hidden=scores.hidden if keep_hidden else None,
    )

  return scored


def side_by_side(
  policy: optax.GradientTransformation, critic: Critic | None
) -> optax.GradientTransformation:
  """One optimizer over a Pair; neither sees the other's gradients.

  So a critic far from its target does not shrink the policy's step where
  gradients are clipped by their global norm.

  Args:
    policy: optimizer of the policy.
    critic: with its own, or None.
  """

  def init(params):
    state = critic.optimizer.init(params.critic) if critic else None
    return Pair(policy.init(params.policy), state)

  def update(grads, state, params):
    changes, own = policy.update(grads.policy, state.policy, params.policy)
    if critic is None:
      return Pair(changes), Pair(own)
    critic_changes, critic_own = critic.optimizer.update(
      grads.critic, state.critic, params.critic
    )
    return Pair(changes, critic_changes), Pair(own, critic_own)

  return optax.GradientTransformation(init, update)
