"""MaxRL, pass@k, OPO, GPG, ReMax: identities, edges, worked examples."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import baselines, group

REWARDS = jnp.array([1.0, 0.5, 0.0, 3.0])
RANDOM = jax.random.normal(jax.random.key(0), (12,))
ESTIMATORS = {
  "mean_scaled": baselines.mean_scaled,
  "best_minus_second": baselines.best_minus_second,
  "length_weighted": lambda r, w=None, **knobs: baselines.length_weighted(
    r, jnp.arange(r.shape[0]) + 1, w, **knobs
  ),
  "rescaled_centred": baselines.rescaled_centred,
}
each_estimator = parameterized.named_parameters(ESTIMATORS.items())


class PropertiesTest(chex.TestCase):
  @parameterized.parameters(1, 2, 3, 7)
  def test_max_rl_of_binary_rewards_is_one_over_the_pass_rate(self, ones):
    rewards = (jnp.arange(8) < ones).astype(jnp.float32)
    actual = baselines.mean_scaled(rewards, group_size=8)
    self.assertAlmostEqual(float(actual[0]), 8 / ones - 1, places=5)
    self.assertAlmostEqual(float(actual[-1]), -1.0, places=6)

  def test_max_rl_is_zero_where_the_mean_is_not_positive(self):
    rewards = jnp.array([-1.0, 0.0, 1.0, 0.0])
    actual = baselines.mean_scaled(rewards, group_size=2)
    np.testing.assert_allclose(actual, [0, 0, 1, -1])

  def test_passk_is_the_best_without_each_row(self):
    rewards = np.asarray(RANDOM).reshape(-1, 4)
    expected = np.zeros_like(rewards)
    for b, i in np.ndindex(rewards.shape):
      others = np.delete(rewards[b], i)
      expected[b, i] = rewards[b].max() - others.max()
    actual = baselines.best_minus_second(RANDOM, group_size=4, normalize=False)
    np.testing.assert_allclose(actual.reshape(-1, 4), expected, atol=1e-6)

  def test_passk_over_the_std_does_not_see_the_scale(self):
    small = baselines.best_minus_second(RANDOM, group_size=4, eps=1e-9)
    large = baselines.best_minus_second(9 * RANDOM, group_size=4, eps=1e-9)
    chex.assert_trees_all_close(small, large, rtol=1e-5)

  def test_passk_of_a_tie_at_the_top_is_zero(self):
    rewards = jnp.array([1.0, 0.0, 1.0, 0.0])
    actual = baselines.best_minus_second(rewards, group_size=4)
    np.testing.assert_array_equal(actual, 0.0)

  def test_opo_of_equal_lengths_is_centring(self):
    actual = baselines.length_weighted(RANDOM, jnp.full(12, 7), group_size=4)
    expected = group.group_centred(RANDOM, group_size=4)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_opo_sums_to_zero_over_tokens(self):
    lengths = jnp.array([5, 1, 0, 3, 2, 2, 9, 1, 4, 4, 4, 1])
    fn = self.variant(
      lambda r: baselines.length_weighted(r, lengths, group_size=4)
    )
    sums = (lengths * fn(RANDOM)).reshape(3, 4).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-5)

  def test_opo_of_a_group_without_tokens_is_zero(self):
    lengths = jnp.array([0, 0, 3, 1])
    actual = baselines.length_weighted(REWARDS, lengths, group_size=2)
    np.testing.assert_array_equal(actual[:2], 0.0)
    np.testing.assert_allclose(actual[2:], [-0.75, 2.25])

  def test_gpg_counts_as_the_paper_or_as_verl(self):
    rewards = jnp.array([1.0, 0.0, 2.0, 2.0, 0.0, 0.0])
    paper = baselines.rescaled_centred(rewards, group_size=2)
    np.testing.assert_allclose(paper, [1.5, -1.5, 0, 0, 0, 0])
    verl = baselines.rescaled_centred(
      rewards, group_size=2, count="nonzero_reward", divisor=2.0
    )
    np.testing.assert_allclose(verl, [0.5, -0.5, 0, 0, 0, 0])

  def test_gpg_of_mixed_groups_is_centring(self):
    chex.assert_trees_all_close(
      baselines.rescaled_centred(RANDOM, group_size=4),
      group.group_centred(RANDOM, group_size=4),
    )

  def test_remax_subtracts_greedy_rewards_on_own_tokens(self):
    returns = jnp.array([[1.0, 1.0, 0.5], [2.0, 0.0, 0.0]])
    mask = jnp.array([[True, False, True], [True, False, False]])
    actual = baselines.greedy_baseline(returns, jnp.array([0.5, 2.0]), mask)
    np.testing.assert_array_equal(actual, [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])


class DroppedRowsTest(chex.TestCase):
  @each_estimator
  def test_may_hold_nan_and_get_zero(self, estimator):
    rewards = jnp.array([jnp.nan, 0.0, 1.0, 2.0])
    weights = jnp.array([0.0, 1.0, 1.0, 1.0])
    actual = estimator(rewards, weights, group_size=4)
    chex.assert_tree_all_finite(actual)
    self.assertEqual(float(actual[0]), 0.0)
    self.assertGreater(float(actual[3]), 0.0)

  @each_estimator
  def test_are_in_nobodys_statistics(self, estimator):
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    once = estimator(REWARDS, weights, group_size=4)
    again = estimator(REWARDS.at[2].set(50.0), weights, group_size=4)
    chex.assert_trees_all_equal(once, again)

  @each_estimator
  def test_leave_a_lonely_row_with_zero(self, estimator):
    weights = jnp.array([1.0, 0.0, 0.0, 0.0])
    actual = estimator(REWARDS, weights, group_size=4)
    np.testing.assert_array_equal(actual, 0.0)

  @each_estimator
  def test_a_group_without_counted_rows_is_zero(self, estimator):
    weights = jnp.array([0.0, 0.0, 1.0, 1.0])
    actual = estimator(REWARDS, weights, group_size=2)
    np.testing.assert_array_equal(actual[:2], 0.0)
    self.assertGreater(float(actual[3]), 0.0)


class RefusedTest(chex.TestCase):
  @each_estimator
  def test_a_group_of_one_is_refused(self, estimator):
    with self.assertRaisesRegex(ValueError, "at least 2, got 1"):
      estimator(REWARDS, group_size=1)

  @parameterized.parameters(
    ({"count": "rows"}, "count must be"), ({"divisor": 0.0}, "divisor")
  )
  def test_a_bad_rescaling_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      baselines.rescaled_centred(REWARDS, group_size=4, **knobs)
