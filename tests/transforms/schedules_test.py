"""Schedules: values by step, and the counter that a checkpoint keeps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import schedules


class CosineTest(chex.TestCase):
  def test_rises_falls_and_begins_anew(self):
    steps = jnp.array([0, 14, 29, 30, 50, 69, 70, 110, 149])
    found = schedules.cosine_restart(steps, high=0.6, low=0.0)
    last = 0.3 * (1 + np.cos(np.pi * 39 / 40))
    expected = [0.02, 0.3, 0.6, 0.6, 0.3, last, 0.6, 0.6, last]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_falls_to_low_not_below(self):
    found = schedules.cosine_restart(
      jnp.arange(30, 150), high=1.0, low=0.4, cycle=120
    )
    self.assertTrue(bool((jnp.diff(found) < 0).all()))
    self.assertGreater(float(found[-1]), 0.4)
    self.assertLess(float(found[-1]), 0.401)

  def test_without_a_rise_it_begins_high(self):
    found = schedules.cosine_restart(0, high=0.7, low=0.1, warmup=0, cycle=4)
    self.assertAlmostEqual(float(found), 0.7, places=6)


class ScheduledTest(chex.TestCase):
  def test_counts_steps_and_says_what_it_wrote(self):
    transform = schedules.scheduled("mu", lambda step, rollout: 0.5 * step)
    rollout, state = rollouts.make_rollout(), transform.init()
    update = jax.jit(transform.update)
    for step in range(3):
      shown, after = update(rollout, state)
      self.assertEqual(float(shown.extras["mu"]), 0.5 * step)
      self.assertEqual(float(shown.extras["metric/mu"]), 0.5 * step)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
      state = after

  def test_the_mean_reward_is_of_rows_that_count(self):
    rollout = rollouts.make_rollout(groups=1, group_size=4)
    rollout = rollout.replace(rewards=jnp.array([1.0, 0.0, 7.0, 0.0]))
    weights = jnp.array([1.0, 1.0, 0.0, 0.0])
    mean = schedules.mean_reward(rollout.replace(weights=weights))
    self.assertEqual(float(mean), 0.5)
    self.assertEqual(float(schedules.mean_reward(rollout)), 1.0)
    nothing = rollout.replace(weights=0 * weights)
    self.assertEqual(float(schedules.mean_reward(nothing)), 0.0)
