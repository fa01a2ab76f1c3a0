"""The contract catches broken methods: each check fails on one."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax.numpy as jnp

from jaxrl_llm import methods
from jaxrl_llm.methods import base
from jaxrl_llm.testing import contract


def _method(**change):
  return dataclasses.replace(methods.Grpo(beta=0.0).build(), **change)


def _reads_padding(scores, rollout, advantages, weights):
  loss = (weights * scores.logprobs * advantages).sum()
  return -loss, {"loss": loss}


def _normalises_in_the_piece(scores, rollout, advantages, weights):
  logprobs = jnp.where(rollout.mask, scores.logprobs, 0.0)
  loss = -(advantages * logprobs).sum() / rollout.mask.sum()
  return loss, {"loss": loss}


def _pushes_the_wrong_way(objective, *args):
  loss, metrics = objective(*args)
  return -loss, metrics


def _rounds(rollout):
  """No sibling is subtracted first: rounding becomes an advantage."""
  grouped = rollout.rewards.reshape(-1, rollout.group_size)
  centred = grouped - grouped.sum(axis=1, keepdims=True) * 0.2500001
  std = jnp.sqrt((centred**2).mean(axis=1, keepdims=True))
  return (centred / (std + 1e-6)).reshape(-1)


class ContractFailsTest(chex.TestCase):
  @parameterized.named_parameters(
    ("padding", "padding_is_never_read", {"objective": _reads_padding}),
    ("pieces", "pieces_add_up", {"objective": _normalises_in_the_piece}),
    ("equal", "equal_rewards_teach_nothing", {"advantage": _rounds}),
    (
      "dropped",
      "dropped_rows_are_not_seen",
      {"weighting": lambda mask, weights: mask / mask.size},
    ),
    (
      "direction",
      "rewards_push_the_right_way",
      {
        "objective": functools.partial(
          _pushes_the_wrong_way, methods.DrGrpo().build().objective
        )
      },
    ),
  )
  def test_a_broken_method_is_caught(self, check, change):
    with self.assertRaises(AssertionError):
      getattr(contract, check)(_method(**change))

  def test_a_need_that_is_not_declared_is_caught(self):
    honest = methods.Grpo(beta=0.1).build()
    method = dataclasses.replace(honest, needs=frozenset())
    with self.assertRaisesRegex(ValueError, "ref_logprobs"):
      contract.padding_is_never_read(method)

  def test_the_method_they_are_made_from_passes(self):
    contract.check_method(_method())
    self.assertIsInstance(_method(), base.Method)
