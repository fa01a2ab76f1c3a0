"""Halves of a group by a metric: what comparing them equals, and when."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group, halves


def _data(size, seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  rewards = jax.random.normal(keys[0], (3 * size,))
  return rewards, jax.random.uniform(keys[1], (3 * size,))


class LowerHalfTest(chex.TestCase):
  @parameterized.parameters((1, 0), (2, 1), (5, 2), (8, 4))
  def test_has_half_of_the_rows_rounded_down(self, size, count):
    lower = halves.lower_half(_data(size)[1], group_size=size)
    np.testing.assert_array_equal(lower.reshape(3, size).sum(axis=1), count)

  def test_ties_keep_the_order_of_rows(self):
    metric = jnp.array([2.0, 1.0, 1.0, 1.0, 1.0])
    lower = halves.lower_half(metric, group_size=5)
    np.testing.assert_array_equal(lower, [False, True, True, False, False])

  def test_rows_that_do_not_count_are_in_neither(self):
    metric = jnp.array([jnp.nan, 3.0, -jnp.inf, 2.0, jnp.inf, 1.0])
    weights = jnp.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    lower = halves.lower_half(metric, weights, group_size=6)
    np.testing.assert_array_equal(lower, [0, 0, 0, 1, 0, 1])


class ConditionalTest(chex.TestCase):
  def test_a_group_by_hand(self):
    rewards, metric = jnp.array([1.0, 1, 0, 0]), jnp.array([4.0, 2, 6, 3])
    # lower: rows 1 and 3, mean 1/2; upper: rows 0 and 2, mean 1/2
    knobs = {"group_size": 4, "alpha": 0.9, "beta": 0.1}
    by_entropy = halves.conditional_advantages(rewards, metric, **knobs)
    np.testing.assert_allclose(by_entropy, [0.65, 0.3, -0.35, -0.6], rtol=1e-5)
    by_length = halves.conditional_advantages(
      rewards, metric, scaled="upper", **knobs
    )
    np.testing.assert_allclose(by_length, [0.5, 0.45, -0.4, -0.55], rtol=1e-5)
    intra = halves.conditional_advantages(rewards, metric, mu=0.0, **knobs)
    np.testing.assert_allclose(intra, [0.5, 0.5, -0.5, -0.5], rtol=1e-5)

  @parameterized.parameters(2, 4, 8)
  def test_half_of_each_is_centring(self, size):
    rewards, metric = _data(size)
    found = halves.conditional_advantages(
      rewards, metric, group_size=size, mu=0.5
    )
    centred = group.group_centred(rewards, group_size=size)
    chex.assert_trees_all_close(found, centred, atol=1e-6)

  @parameterized.parameters(2, 6)
  def test_between_halves_it_sums_to_zero(self, size):
    found = halves.conditional_advantages(*_data(size), group_size=size)
    sums = found.reshape(3, size).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-5)

  @parameterized.parameters(3, 4)
  def test_within_halves_each_sums_to_zero(self, size):
    rewards, metric = _data(size)
    found = halves.conditional_advantages(
      rewards, metric, group_size=size, mu=0.0
    )
    lower = halves.lower_half(metric, group_size=size)
    for half in (lower, ~lower):
      sums = jnp.where(half, found, 0.0).reshape(3, size).sum(axis=1)
      np.testing.assert_allclose(sums, 0.0, atol=1e-6)

  def test_rows_of_a_half_differ_by_their_rewards(self):
    rewards, metric = _data(6)
    found = halves.conditional_advantages(rewards, metric, group_size=6)
    lower = np.asarray(halves.lower_half(metric, group_size=6)).reshape(3, 6)
    rest = np.asarray(found - rewards).reshape(3, 6)
    for row, half in zip(rest, lower, strict=True):
      np.testing.assert_allclose(row[half], row[half][0], atol=1e-6)
      np.testing.assert_allclose(row[~half], row[~half][0], atol=1e-6)

  def test_the_order_of_rows_does_not_matter(self):
    rewards, metric = _data(5)
    shuffle = jnp.array([3, 0, 4, 2, 1])
    moved = lambda x: x.reshape(3, 5)[:, shuffle].reshape(-1)  # noqa: E731
    knobs = {"group_size": 5, "mu": 0.3, "alpha": 0.9, "beta": 0.2}
    chex.assert_trees_all_close(
      halves.conditional_advantages(moved(rewards), moved(metric), **knobs),
      moved(halves.conditional_advantages(rewards, metric, **knobs)),
      atol=1e-6,
    )

  def test_only_the_order_of_the_metric_matters(self):
    rewards, metric = _data(8)
    chex.assert_trees_all_equal(
      halves.conditional_advantages(rewards, metric, group_size=8),
      halves.conditional_advantages(
        rewards, jnp.exp(9 * metric) - 3, group_size=8
      ),
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_equal_rewards_give_exactly_zero(self):
    fn = self.variant(
      halves.conditional_advantages, static_argnames="group_size"
    )
    for constant in (0.9, -3.3, 1000.7):
      for size in (2, 3, 8):
        found = fn(
          jnp.full(3 * size, constant), _data(size)[1], group_size=size, mu=0.7
        )
        np.testing.assert_array_equal(found, 0.0)

  @parameterized.parameters("lower", "upper")
  def test_a_group_of_one_is_an_upper_half(self, scaled):
    rewards = jnp.array([1.0, 0.5])
    knobs = {"group_size": 1, "scaled": scaled}
    found = halves.conditional_advantages(rewards, rewards, **knobs)
    np.testing.assert_allclose(found, rewards)
    found = halves.conditional_advantages(
      rewards, rewards, mu=0.5, alpha=0.8, beta=0.2, **knobs
    )
    share = 0.9 if scaled == "upper" else 1.0
    np.testing.assert_allclose(found, share * rewards + 0.1, rtol=1e-6)

  def test_a_dropped_row_makes_the_group_smaller(self):
    rewards = jnp.array([1.0, 0.0, 9.0, 0.5, 0.2])
    metric = jnp.array([3.0, 1.0, jnp.nan, 2.0, 5.0])
    weights = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    knobs = {"mu": 0.6, "alpha": 0.9}
    found = halves.conditional_advantages(
      rewards, metric, weights, group_size=5, **knobs
    )
    kept = np.array([0, 1, 3, 4])
    small = halves.conditional_advantages(
      rewards[kept], metric[kept], group_size=4, **knobs
    )
    np.testing.assert_allclose(found[kept], small, rtol=1e-5, atol=1e-6)
    self.assertEqual(float(found[2]), 0.0)
    alone = halves.conditional_advantages(
      rewards, metric, jnp.eye(5)[0], group_size=5, **knobs
    )
    np.testing.assert_array_equal(alone, 0.0)

  def test_an_unknown_half_is_refused(self):
    with self.assertRaisesRegex(ValueError, "lower or upper, got 'left'"):
      halves.conditional_advantages(*_data(2), group_size=2, scaled="left")


class MeanOverTokensTest(chex.TestCase):
  def test_of_the_mask_alone_and_0_of_nothing(self):
    values = jnp.array([[1.0, 3.0, jnp.inf], [jnp.nan, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    found = halves.mean_over_tokens(values, mask)
    np.testing.assert_allclose(found, [2.0, 0.0], rtol=1e-6)
