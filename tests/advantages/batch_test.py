"""Deviations over the batch: properties, rows that do not count."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import batch, group

REWARDS = jnp.array([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0])


class BatchTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_normalized_is_centring_over_one_std(self):
    fn = self.variant(
      lambda r: batch.batch_normalized(r, group_size=4, eps=1e-9)
    )
    expected = group.group_centred(REWARDS, group_size=4) / np.std(
      np.asarray(REWARDS), ddof=1
    )
    chex.assert_trees_all_close(fn(REWARDS), expected, rtol=1e-6)

  @parameterized.parameters(0, 1)
  def test_scaled_advantages_have_deviation_1(self, ddof):
    advantages = group.leave_one_out(REWARDS, group_size=4)
    actual = batch.batch_scaled(advantages, ddof=ddof, eps=1e-9)
    self.assertAlmostEqual(
      float(np.std(np.asarray(actual), ddof=ddof)), 1.0, places=5
    )
    np.testing.assert_allclose(actual.reshape(2, 4).sum(axis=1), 0.0, atol=1e-6)

  def test_dropped_rows_may_hold_nan_and_are_in_no_statistic(self):
    rewards = REWARDS.at[2].set(jnp.nan)
    weights = jnp.ones(8).at[2].set(0.0)
    kept = np.array([0, 1, 3, 4, 5, 6, 7])
    std = batch.batch_std(rewards, weights)
    self.assertAlmostEqual(
      float(std), float(np.std(np.asarray(REWARDS)[kept], ddof=1)), places=6
    )
    for actual in (
      batch.batch_normalized(rewards, weights, group_size=4),
      batch.batch_scaled(rewards, weights),
    ):
      chex.assert_tree_all_finite(actual)
      self.assertEqual(float(actual[2]), 0.0)

  def test_nothing_that_counts_gives_zero(self):
    none = jnp.zeros(8)
    self.assertEqual(float(batch.batch_std(REWARDS, none)), 0.0)
    actual = batch.batch_normalized(REWARDS, none, group_size=4)
    np.testing.assert_array_equal(actual, 0.0)

  def test_dtype_is_that_of_the_rewards(self):
    with jax.enable_x64(True):
      rewards = jnp.asarray(REWARDS, jnp.float64)
      actual = batch.batch_normalized(rewards, group_size=4)
      self.assertEqual(actual.dtype, jnp.float64)

  @parameterized.parameters({"ddof": 2}, {"eps": 0.0})
  def test_a_bad_knob_is_refused(self, **knobs):
    (name,) = knobs
    with self.assertRaisesRegex(ValueError, name):
      batch.batch_normalized(REWARDS, group_size=4, **knobs)
    with self.assertRaisesRegex(ValueError, name):
      batch.batch_scaled(REWARDS, **knobs)
