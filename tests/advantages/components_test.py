"""Several rewards: scale, NaN, identities with one reward."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import batch, components, group

NAN = jnp.nan
PARTS = jax.random.normal(jax.random.key(0), (8, 3))
ONES = jnp.ones(3)
HOLES = jnp.array(
  [[1, NAN], [0, 0.5], [NAN, NAN], [0, 0.2]] + [[NAN, 0.3], [1, 0.9]] * 2
)


class CombinedTest(chex.TestCase):
  def test_adds_what_applies(self):
    actual = components.combined(HOLES, jnp.array([2.0, 10.0]))
    np.testing.assert_allclose(actual, [2, 5, NAN, 2, 3, 11, 3, 11])

  def test_of_one_reward_is_that_reward(self):
    np.testing.assert_array_equal(
      components.combined(PARTS[:, :1], jnp.ones(1)), PARTS[:, 0]
    )


class GdpoTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_the_scale_of_a_component_does_not_matter(self):
    fn = self.variant(
      lambda x: components.gdpo(x, ONES, group_size=4, eps=1e-9)
    )
    factors = jnp.array([[1.0, 1000.0, 0.01]])
    chex.assert_trees_all_close(fn(PARTS), fn(PARTS * factors), rtol=1e-4)

  def test_its_weights_do_matter(self):
    knobs = {"group_size": 4}
    only = components.normalized_sum(PARTS, jnp.array([0.0, 2.0, 0.0]), **knobs)
    expected = 2.0 * group.group_normalized(PARTS[:, 1], **knobs)
    chex.assert_trees_all_close(only, expected, rtol=1e-6)

  def test_with_one_reward_is_grpo_over_the_deviation_of_the_batch(self):
    one = PARTS[:, :1]
    actual = components.gdpo(one, jnp.ones(1), group_size=4)
    expected = batch.batch_scaled(
      group.group_normalized(one[:, 0], group_size=4)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)

  def test_a_constant_component_adds_nothing(self):
    constant = jnp.concatenate([PARTS, jnp.full((8, 1), 0.9)], axis=1)
    chex.assert_trees_all_equal(
      components.gdpo(constant, jnp.ones(4), group_size=4),
      components.gdpo(PARTS, ONES, group_size=4),
    )

  def test_tells_combinations_of_one_sum_apart(self):
    parts = jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 1.0]])
    summed = group.group_normalized(parts.sum(axis=1), group_size=4)
    self.assertEqual(float(summed[0]), float(summed[1]))
    actual = components.gdpo(parts, jnp.ones(2), group_size=4)
    self.assertGreater(abs(float(actual[0] - actual[1])), 0.1)

  def test_a_component_that_does_not_apply_is_in_no_statistic(self):
    sums = components.normalized_sum(HOLES, jnp.ones(2), group_size=4)
    kept = np.array([0, 1, 3])  # of the first group, by component 0
    z = np.zeros(4)
    x = np.array([1.0, 0.0, 0.0])
    z[kept] = (x - x.mean()) / (x.std(ddof=1) + 1e-4)
    y = np.array([0.5, 0.2])
    z[[1, 3]] += (y - y.mean()) / (y.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(sums[:4], z, rtol=1e-5)

  @parameterized.parameters("gdpo", "normalized_sum")
  def test_rows_without_any_reward_and_dropped_rows_get_zero(self, name):
    fn = getattr(components, name)
    weights = jnp.ones(8).at[5].set(0.0)
    once = fn(HOLES, jnp.ones(2), weights, group_size=4)
    again = fn(HOLES.at[5].set(70.0), jnp.ones(2), weights, group_size=4)
    chex.assert_trees_all_equal(once, again)
    chex.assert_tree_all_finite(once)
    np.testing.assert_array_equal(once[np.array([2, 5])], 0.0)

  def test_nothing_at_all_gives_zero(self):
    actual = components.gdpo(jnp.full((8, 2), NAN), jnp.ones(2), group_size=4)
    np.testing.assert_array_equal(actual, 0.0)

  def test_a_group_of_one_is_refused(self):
    with self.assertRaisesRegex(ValueError, "at least 2, got 1"):
      components.gdpo(PARTS, ONES, group_size=1)

  def test_weights_must_be_one_a_component(self):
    with self.assertRaises(AssertionError):
      components.gdpo(PARTS, jnp.ones(2), group_size=4)


LEVELS = [[0.0, 0.5, 1.0]]


def _pearl(parts, edges, levels=LEVELS, weights=ONES, **knobs):
  snapped = components.discretized(parts, edges, levels)
  return components.normalized_sum(snapped, weights, group_size=4, **knobs)


class DiscretizedTest(chex.TestCase):
  def test_a_value_at_an_edge_is_above_it(self):
    values = jnp.array([[-9.0], [0.0], [0.1], [0.5], [9.0], [NAN]])
    np.testing.assert_array_equal(
      components.discretized(values, [[0.0, 0.5]], [[7.0, 8.0, 5.0]]),
      [[7.0], [8.0], [8.0], [5.0], [5.0], [NAN]],
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_rising_affine_map_of_a_reward_and_its_edges(self):
    edges = [[-0.5, 0.5], [0.0, 1.0], [-1.0, 0.0]]
    fn = self.variant(lambda x, e: _pearl(x, e), static_argnums=())
    plain = fn(PARTS, jnp.array(edges))
    scale, add = jnp.array([4.0, 1.0, 0.5]), jnp.array([1.0, 0.0, -2.0])
    mapped = jnp.array(edges) * scale[:, None] + add[:, None]
    chex.assert_trees_all_equal(
      fn(PARTS * scale[None] + add[None], mapped), plain
    )

  def test_thirds_follow_the_scale_of_a_reward(self):
    scale = jnp.array([[1.0, 64.0, 0.125]])
    chex.assert_trees_all_equal(
      _pearl(PARTS, components.thirds(PARTS)),
      _pearl(PARTS * scale, components.thirds(PARTS * scale)),
    )
    np.testing.assert_allclose(
      components.thirds(jnp.array([[0.0, 5], [3, NAN], [9, 5]])),
      [[3.0, 6.0], [5.0, 5.0]],
      rtol=1e-6,
    )

  def test_thirds_do_not_see_dropped_rows(self):
    weights = jnp.ones(8).at[3].set(0.0)
    chex.assert_trees_all_equal(
      components.thirds(PARTS, weights),
      components.thirds(PARTS.at[3].set(1e9), weights),
    )

  def test_credit_of_a_group_sums_to_zero(self):
    sums = _pearl(PARTS, components.thirds(PARTS)).reshape(-1, 4).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-6)

  def test_values_of_one_level_get_one_credit(self):
    near = PARTS.at[0].set(jnp.array([0.1, 0.2, 0.3]))
    other = PARTS.at[0].set(jnp.array([0.4, 0.45, 0.3]))
    chex.assert_trees_all_equal(
      _pearl(near, [[0.0, 0.5]]), _pearl(other, [[0.0, 0.5]])
    )

  def test_one_reward_with_fine_levels_is_grpo(self):
    edges = jnp.linspace(-4.0, 4.0, 8001)
    levels = jnp.concatenate([edges[:1] - 0.001, edges]) + 0.0005
    fine = _pearl(PARTS[:, :1], [edges], [levels], jnp.ones(1))
    grpo = group.group_normalized(PARTS[:, 0], group_size=4)
    np.testing.assert_allclose(fine, grpo, atol=5e-3)

  def test_the_scale_of_levels_does_not_matter(self):
    edges = [[0.0, 0.5]]
    many = [[0.0, 50.0, 100.0], *LEVELS, *LEVELS]
    np.testing.assert_allclose(
      _pearl(PARTS, edges, many, eps=1e-9),
      _pearl(PARTS, edges, eps=1e-9),
      rtol=1e-5,
    )

  def test_one_list_or_one_for_each(self):
    with self.assertRaisesRegex(ValueError, "edges must be .* 3 .* got 2"):
      components.discretized(PARTS, [[0.0], [1.0]], [[0.0, 1.0]])
