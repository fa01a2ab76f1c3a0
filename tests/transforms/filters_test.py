"""Zero-variance groups and truncated rows: found, dropped, counted."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import filters

# Four groups of two: uniform, mixed, uniform, mixed (the spec's example).
REWARDS = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
ONES = jnp.ones(8)


def _drop(rewards, weights, group_size=2):
  rollout = rollouts.make_rollout(groups=4, group_size=2)
  rollout = rollout.replace(
    rewards=rewards, weights=weights, group_size=group_size
  )
  transform = filters.drop_uniform_groups()
  changed, _ = jax.jit(transform.update)(rollout, transform.init())
  chex.assert_trees_all_equal(changed.replace(weights=weights), rollout)
  return changed.weights


class DropUniformGroupsTest(chex.TestCase):
  def test_keeps_groups_with_a_difference_and_nothing_else_changes(self):
    np.testing.assert_array_equal(
      _drop(REWARDS, ONES), [0, 0, 1, 1, 0, 0, 1, 1]
    )

  def test_keeps_the_weights_of_the_rest(self):
    weights = jnp.linspace(0.25, 2.0, 8)
    actual = _drop(REWARDS, weights)
    np.testing.assert_array_equal(actual, weights * _drop(REWARDS, ONES))

  def test_dropped_rows_are_no_difference(self):
    rewards = jnp.array([1.0, 1.0, 1.0, jnp.nan, 0.0, 1.0, 0.0, 2.0])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    rollout = rollouts.make_rollout(groups=2, group_size=4)
    rollout = rollout.replace(rewards=rewards, weights=weights)
    transform = filters.drop_uniform_groups()
    changed, _ = transform.update(rollout, transform.init())
    np.testing.assert_array_equal(changed.weights, [0, 0, 0, 0, 1, 1, 1, 0])

  def test_a_difference_of_one_bit_is_a_difference(self):
    rewards = REWARDS.at[0].set(jnp.nextafter(jnp.float32(1), jnp.float32(2)))
    np.testing.assert_array_equal(_drop(rewards, ONES)[:2], [1, 1])


class ZeroVarianceShareTest(chex.TestCase):
  def test_is_the_share_of_uniform_groups(self):
    share = filters.zero_variance_share(REWARDS, ONES, group_size=2)
    self.assertEqual(float(share), 0.5)
    share = filters.zero_variance_share(REWARDS, ONES, group_size=4)
    self.assertEqual(float(share), 0.0)

  def test_a_group_with_one_counted_row_teaches_nothing(self):
    weights = ONES.at[2].set(0.0)
    share = filters.zero_variance_share(REWARDS, weights, group_size=2)
    self.assertEqual(float(share), 0.75)

  def test_takes_arrays_of_the_host(self):
    share = filters.zero_variance_share(
      np.asarray(REWARDS), np.asarray(ONES), group_size=2
    )
    self.assertEqual(float(share), 0.5)


class WithoutTruncatedTest(chex.TestCase):
  def test_weighs_what_ended_by_length_zero_and_keeps_the_rest(self):
    rollout = rollouts.make_rollout()
    reasons = jnp.full(8, types.FINISH_STOP).at[3].set(types.FINISH_LENGTH)
    weights = jnp.linspace(0.5, 1.0, 8)
    rollout = rollout.replace(weights=weights, finish_reason=reasons)
    transform = filters.drop_truncated()
    changed, _ = jax.jit(transform.update)(rollout, transform.init())
    np.testing.assert_array_equal(changed.weights, weights.at[3].set(0.0))
    chex.assert_trees_all_equal(changed.replace(weights=weights), rollout)
