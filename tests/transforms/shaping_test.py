"""Rewards changed by length: the overlong penalty, stopping properly."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import shaping


class SoftOverlongTest(chex.TestCase):
  def test_falls_from_zero_to_minus_the_factor(self):
    penalty = shaping.soft_overlong(
      jnp.arange(0, 130), max_length=100, buffer=20, factor=0.5
    )
    self.assertEqual(float(penalty[80]), 0.0)
    self.assertEqual(float(penalty[90]), -0.25)
    self.assertEqual(float(penalty[100]), -0.5)
    self.assertEqual(float(penalty[129]), -0.5)
    self.assertLessEqual(float(jnp.diff(penalty).max()), 0.0)
    self.assertGreaterEqual(float(jnp.diff(penalty).min()), -0.0251)

  def test_without_a_bound_it_goes_on_falling_and_is_equal_before(self):
    lengths = jnp.arange(0, 130)
    knobs = {"max_length": 100, "buffer": 20, "factor": 0.5}
    bounded = shaping.soft_overlong(lengths, **knobs)
    growing = shaping.soft_overlong(lengths, **knobs, bounded=False)
    np.testing.assert_array_equal(growing[:101], bounded[:101])
    self.assertEqual(float(growing[110]), -0.75)

  def test_without_a_buffer_only_what_is_beyond_the_limit_pays(self):
    penalty = shaping.soft_overlong(
      jnp.array([0, 99, 100, 101]), max_length=100, buffer=0, factor=2.0
    )
    np.testing.assert_array_equal(penalty, [0, 0, 0, -2])

  @parameterized.parameters(
    ({"buffer": -1}, "buffer must be 0 tokens or more"),
    ({"buffer": 0, "bounded": False}, "buffer must be at least 1 token"),
    ({"buffer": 101}, "buffer must be in"),
    ({"factor": -1.0}, "factor must be 0 or more"),
  )
  def test_a_bad_knob_is_refused(self, change, message):
    knobs = {"max_length": 100, "buffer": 20, "factor": 1.0} | change
    with self.assertRaisesRegex(ValueError, message):
      shaping.soft_overlong(jnp.arange(3), **knobs)


class OverlongPenaltyTest(chex.TestCase):
  def test_counts_the_policys_own_tokens(self):
    rollout = rollouts.make_rollout(length=6)
    own = jnp.arange(6)[None, :] < jnp.arange(8)[:, None]  # 0, 1, ... 6, 6
    rollout = rollout.replace(mask=own, rewards=jnp.ones(8))
    transform = shaping.overlong_penalty(buffer=2)
    changed, _ = jax.jit(transform.update)(rollout, transform.init())
    np.testing.assert_array_equal(
      changed.rewards, [1, 1, 1, 1, 1, 0.5, 0.0, 0.0]
    )

  def test_the_limit_may_be_given(self):
    rollout = rollouts.make_rollout(length=6)
    rollout = rollout.replace(mask=jnp.ones((8, 6), bool))
    transform = shaping.overlong_penalty(buffer=4, max_length=8, factor=2.0)
    changed, _ = transform.update(rollout, transform.init())
    np.testing.assert_array_equal(changed.rewards, rollout.rewards - 1.0)

  def test_a_buffer_longer_than_the_rollout_is_refused(self):
    transform = shaping.overlong_penalty(buffer=7)
    with self.assertRaisesRegex(ValueError, r"buffer must be in \[0, 6\]"):
      transform.update(rollouts.make_rollout(length=6), transform.init())

  def test_the_buffer_is_a_fifth_of_the_limit_unless_given(self):
    lengths = jnp.arange(13, 21)
    own = jnp.arange(20)[None, :] < lengths[:, None]
    rollout = rollouts.make_rollout(length=20)
    rollout = rollout.replace(mask=own, rewards=jnp.zeros(8))
    transform = shaping.overlong_penalty(buffer=None)
    changed, _ = transform.update(rollout, transform.init())
    expected = shaping.soft_overlong(
      lengths, max_length=20, buffer=4, factor=1.0
    )
    np.testing.assert_array_equal(changed.rewards, expected)


class StopProperlyTest(chex.TestCase):
  REWARDS = jnp.array([1.0, 1.0, -1.0, 0.0])
  TRUNCATED = jnp.array([True, False, True, False])

  @parameterized.parameters(
    (1.0, [1, 1, -1, 0]), (0.5, [0.5, 1, -0.5, 0]), (-0.5, [-0.5, 1, -0.5, 0])
  )
  def test_multiplies_or_sets_what_was_cut_off(self, coef, expected):
    actual = shaping.stop_properly(self.REWARDS, self.TRUNCATED, coef=coef)
    np.testing.assert_array_equal(actual, expected)

  def test_reads_the_finish_reason_not_the_length(self):
    rollout = rollouts.make_rollout()
    full = jnp.full(8, types.FINISH_STOP).at[3].set(types.FINISH_LENGTH)
    rollout = rollout.replace(
      rewards=jnp.ones(8), finish_reason=full, mask=jnp.ones((8, 6), bool)
    )
    transform = shaping.stop_properly_penalty(0.0)
    changed, _ = jax.jit(transform.update)(rollout, transform.init())
    np.testing.assert_array_equal(changed.rewards, [1, 1, 1, 0, 1, 1, 1, 1])

  def test_an_infinite_coef_is_refused(self):
    with self.assertRaisesRegex(ValueError, "coef must be finite, got inf"):
      shaping.stop_properly_penalty(float("inf"))
