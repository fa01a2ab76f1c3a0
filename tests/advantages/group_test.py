"""Group advantages: properties, exact zeros, dropped rows."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group

ESTIMATORS = {
  "normalized": group.group_normalized,
  "centred": group.group_centred,
  "leave_one_out": group.leave_one_out,
}
each_estimator = parameterized.named_parameters(ESTIMATORS.items())


class PropertiesTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @each_estimator
  def test_a_group_sums_to_zero(self, estimator):
    rewards = jax.random.normal(jax.random.key(0), (12,))
    actual = self.variant(estimator, static_argnames="group_size")(
      rewards, group_size=4
    )
    sums = actual.reshape(3, 4).sum(axis=1)
    chex.assert_trees_all_close(sums, jnp.zeros(3), atol=1e-5)

  @each_estimator
  def test_order_in_the_group_does_not_matter(self, estimator):
    rewards = jax.random.normal(jax.random.key(1), (8,))
    order = jnp.array([2, 0, 3, 1, 7, 6, 4, 5])
    actual = estimator(rewards[order], group_size=4)
    expected = estimator(rewards, group_size=4)[order]
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)

  @each_estimator
  def test_a_shift_of_rewards_does_not_matter(self, estimator):
    rewards = jnp.array([1.0, 0.0, 3.0, 0.5, 2.0, -1.0, 0.25, 4.0])
    chex.assert_trees_all_close(
      estimator(rewards + 16.0, group_size=4),
      estimator(rewards, group_size=4),
      rtol=1e-6,
    )

  def test_normalized_does_not_see_the_scale(self):
    rewards = jax.random.normal(jax.random.key(2), (8,))
    small = group.group_normalized(rewards, group_size=4, eps=1e-9)
    large = group.group_normalized(50.0 * rewards, group_size=4, eps=1e-9)
    chex.assert_trees_all_close(small, large, rtol=1e-5)

  @parameterized.parameters(2, 4, 8)
  def test_leave_one_out_is_scaled_centring(self, size):
    rewards = jax.random.normal(jax.random.key(3), (8,))
    chex.assert_trees_all_close(
      group.leave_one_out(rewards, group_size=size),
      size / (size - 1) * group.group_centred(rewards, group_size=size),
      rtol=1e-6,
    )

  def test_leave_one_out_subtracts_the_siblings_mean(self):
    rewards = jnp.array([1.0, 0.5, 0.0, 3.0])
    actual = group.leave_one_out(rewards, group_size=4)
    expected = [1 - 3.5 / 3, 0.5 - 4 / 3, 0 - 4.5 / 3, 3 - 1.5 / 3]
    chex.assert_trees_all_close(actual, jnp.array(expected), rtol=1e-6)

  @parameterized.product(ddof=(0, 1), ones=(1, 3, 7))
  def test_binary_rewards_have_the_known_advantage(self, ddof, ones):
    rewards = (jnp.arange(8) < ones).astype(jnp.float32)
    actual = group.group_normalized(rewards, group_size=8, ddof=ddof, eps=1e-9)[
      0
    ]
    p = ones / 8
    expected = np.sqrt((1 - p) / p * (7 / 8 if ddof else 1.0))
    self.assertAlmostEqual(float(actual), expected, places=5)


class LeaveOneOutNormalizedTest(chex.TestCase):
  def test_standardises_by_the_siblings(self):
    rewards = np.array([1.0, 0.5, 0.0, 3.0])
    expected = []
    for i in range(4):
      others = np.delete(rewards, i)
      std = others.std(ddof=1)
      expected.append((rewards[i] - others.mean()) / (std + 1e-6))
    actual = group.leave_one_out_normalized(jnp.asarray(rewards), group_size=4)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)

  def test_is_undivided_where_the_siblings_agree(self):
    rewards = jnp.array([1.9, 0.9, 0.9, 0.9])
    actual = group.leave_one_out_normalized(rewards, group_size=4)
    self.assertAlmostEqual(float(actual[0]), 1.0, places=6)

  def test_explodes_as_its_docstring_warns(self):
    rewards = jnp.array([1.0, 0.0, 0.0, 1e-6])
    actual = group.leave_one_out_normalized(rewards, group_size=4)
    self.assertGreater(float(actual[0]), 6e5)
    mild = group.leave_one_out(rewards, group_size=4)
    self.assertLess(float(jnp.abs(mild).max()), 1.01)

  def test_dropped_rows_are_nobodys_siblings(self):
    rewards = jnp.array([1.0, 0.0, jnp.nan, 0.5, 0.2])
    weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    kept = np.array([0, 1, 3, 4])
    actual = group.leave_one_out_normalized(rewards, weights, group_size=5)
    expected = group.leave_one_out_normalized(rewards[kept], group_size=4)
    self.assertEqual(float(actual[2]), 0.0)
    chex.assert_trees_all_close(actual[kept], expected, rtol=1e-5)


class EqualRewardsTest(chex.TestCase):
  """Contract 10: exactly zero, for any constant and any G, under jit."""

  @parameterized.product(
    estimator=tuple(ESTIMATORS.values()), size=(2, 3, 5, 6, 7, 8, 16, 64)
  )
  def test_give_exactly_zero_for_any_constant(self, estimator, size):
    rng = np.random.default_rng(size)
    constants = np.concatenate(
      [
        rng.uniform(-2, 2, 3000),
        rng.uniform(-1, 1, 1000) * 10.0 ** rng.integers(-30, 30, 1000),
        [0.1, 0.9, 1 / 3, 1000.7, -1e30, 1e-38],
      ]
    ).astype(np.float32)
    rewards = jnp.asarray(np.repeat(constants, size))
    run = jax.jit(estimator, static_argnames="group_size")
    np.testing.assert_array_equal(run(rewards, group_size=size), 0.0)

  def test_give_zero_when_computed_in_the_same_program(self):
    def shaped(base, penalty):
      rewards = base - 0.3 * penalty / 7.0
      return group.group_normalized(rewards, group_size=8)

    for seed in range(50):
      value, penalty = np.random.default_rng(seed).uniform(0, 2, 2)
      full = lambda x: jnp.full(8, x, jnp.float32)  # noqa: E731
      actual = jax.jit(shaped)(full(value), full(penalty))
      np.testing.assert_array_equal(actual, 0.0)

  def test_a_mixed_group_beside_a_uniform_one_is_unchanged(self):
    mixed = jnp.array([1.0, 0.0, 0.0, 1.0])
    both = jnp.concatenate([jnp.full(4, 0.9), mixed])
    actual = group.group_normalized(both, group_size=4)
    np.testing.assert_array_equal(actual[:4], 0.0)
    np.testing.assert_array_equal(
      actual[4:], group.group_normalized(mixed, group_size=4)
    )


class DroppedRowsTest(chex.TestCase):
  @each_estimator
  def test_are_zero_and_in_nobodys_statistics(self, estimator):
    rewards = jnp.array([1.0, 0.0, 99.0, 0.5, 0.2])
    weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    kept = np.array([0, 1, 3, 4])
    actual = estimator(rewards, weights, group_size=5)
    expected = estimator(rewards[kept], group_size=4)
    self.assertEqual(float(actual[2]), 0.0)
    chex.assert_trees_all_close(actual[kept], expected, rtol=1e-6)

  @each_estimator
  def test_may_hold_nan(self, estimator):
    rewards = jnp.array([jnp.nan, 0.0, 1.0, 2.0])
    weights = jnp.array([0.0, 1.0, 1.0, 1.0])
    actual = estimator(rewards, weights, group_size=4)
    chex.assert_tree_all_finite(actual)
    self.assertEqual(float(actual[0]), 0.0)

  @each_estimator
  def test_leave_a_lonely_row_with_zero(self, estimator):
    rewards = jnp.array([5.0, 1.0, 2.0, 3.0])
    weights = jnp.array([1.0, 0.0, 0.0, 0.0])
    actual = estimator(rewards, weights, group_size=4)
    np.testing.assert_array_equal(actual, 0.0)

  @each_estimator
  def test_a_group_without_counted_rows_is_zero(self, estimator):
    rewards = jnp.array([5.0, 1.0, 0.0, 1.0])
    weights = jnp.array([0.0, 0.0, 1.0, 1.0])
    actual = estimator(rewards, weights, group_size=2)
    np.testing.assert_array_equal(actual[:2], 0.0)
    self.assertGreater(float(actual[3]), 0.0)


class RefusedTest(chex.TestCase):
  @each_estimator
  def test_a_group_of_one_is_refused(self, estimator):
    with self.assertRaisesRegex(ValueError, "at least 2, got 1"):
      estimator(jnp.ones(3), group_size=1)

  @each_estimator
  def test_a_torn_group_is_refused(self, estimator):
    with self.assertRaises(AssertionError):
      estimator(jnp.ones(7), group_size=4)

  @parameterized.parameters(
    {"ddof": 2}, {"eps": 0.0}, {"eps": -1.0}, {"eps": float("nan")}
  )
  def test_a_bad_knob_is_refused(self, **knobs):
    (name,) = knobs
    with self.assertRaisesRegex(ValueError, name):
      group.group_normalized(jnp.ones(4), group_size=4, **knobs)
