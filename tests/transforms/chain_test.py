"""Joining transforms: order, state, observation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import chain, filters, shaping, statistics


def _add(amount):
  return chain.stateless(
    lambda rollout: rollout.replace(rewards=rollout.rewards + amount)
  )


def _double():
  return chain.stateless(
    lambda rollout: rollout.replace(rewards=rollout.rewards * 2)
  )


def _adaptive():
  """Counts what it observes, to see that the state is threaded."""
  return types.RolloutTransform(
    init=lambda: jnp.zeros(()),
    update=lambda rollout, seen: (
      rollout.replace(extras=rollout.extras | {"seen": seen}),
      seen,
    ),
    observe=lambda seen, metrics: seen + metrics["loss"],
  )


class ChainTest(chex.TestCase):
  def test_identity_and_the_empty_chain_change_nothing(self):
    rollout = rollouts.make_rollout()
    for transform in (chain.identity(), chain.chain()):
      same, state = transform.update(rollout, transform.init())
      chex.assert_trees_all_equal(same, rollout)
      self.assertEqual(state, ())

  def test_the_first_is_applied_first(self):
    rollout = rollouts.make_rollout()
    joined = chain.chain(_add(1.0), _double())
    changed, _ = joined.update(rollout, joined.init())
    np.testing.assert_array_equal(changed.rewards, 2 * (rollout.rewards + 1))

  def test_chains_nest(self):
    rollout = rollouts.make_rollout()
    inner = chain.chain(_double(), statistics.running_baseline(0.5))
    nested = chain.chain(_add(1.0), inner)
    flat = chain.chain(_add(1.0), _double(), statistics.running_baseline(0.5))
    left, _ = nested.update(rollout, nested.init())
    right, _ = flat.update(rollout, flat.init())
    chex.assert_trees_all_equal(left, right)

  def test_state_is_threaded_and_observes_each_step(self):
    joined = chain.chain(_double(), _adaptive())
    rollout, state = rollouts.make_rollout(), joined.init()
    for step in range(3):
      changed, state = jax.jit(joined.update)(rollout, state)
      self.assertEqual(float(changed.extras["seen"]), 2.0 * step)
      state = joined.observe(state, {"loss": jnp.float32(2.0)})

  def test_every_transform_keeps_shapes_and_state_structure(self):
    joined = chain.chain(
      filters.drop_uniform_groups(),
      shaping.overlong_penalty(buffer=2),
      statistics.running_baseline(),
    )
    rollout, state = rollouts.make_rollout(), joined.init()
    changed, new = jax.eval_shape(joined.update, rollout, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      rollout, changed.replace(extras={})
    )
