"""BNPO's advantage: what it reduces to, its density, its edges."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxrl_llm.advantages import beta, group


def _binary(*counts, size=4):
  """Groups with so many ones each."""
  rows = [[1.0] * k + [0.0] * (size - k) for k in counts]
  return jnp.array(rows).reshape(-1)


RANDOM = jax.random.uniform(jax.random.key(0), (24,))


class BetaNormalizedTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_at_three_halves_it_is_grpo_times_pi_over_8(self):
    rewards = _binary(1, 2, 3)  # rates 1/4, 1/2, 3/4: alpha = beta = 3/2
    fn = self.variant(lambda r: beta.beta_normalized(r, group_size=4))
    grpo = group.group_normalized(rewards, group_size=4, ddof=0, eps=1e-12)
    np.testing.assert_allclose(fn(rewards), jnp.pi / 8 * grpo, rtol=1e-5)

  @parameterized.parameters(
    ((2,),),  # one prompt
    ((2, 2, 2),),  # one rate
    ((0, 4, 0, 4, 2),),  # v > m (1 - m): a and b are negative
  )
  def test_with_a_uniform_density_it_is_reward_minus_mean(self, counts):
    rewards = _binary(*counts)
    np.testing.assert_allclose(
      beta.beta_normalized(rewards, group_size=4),
      group.group_centred(rewards, group_size=4),
      rtol=1e-6,
    )

  def test_sums_to_zero_and_has_the_sign_of_reward_less_mean(self):
    actual = beta.beta_normalized(RANDOM, group_size=4).reshape(-1, 4)
    np.testing.assert_allclose(actual.sum(axis=1), 0.0, atol=1e-5)
    centred = group.group_centred(RANDOM, group_size=4).reshape(-1, 4)
    np.testing.assert_array_equal(jnp.sign(actual), jnp.sign(centred))

  @parameterized.parameters((4.0, -1.0), (0.25, 0.5))
  def test_an_affine_map_of_rewards_and_range_changes_nothing(self, scale, add):
    plain = beta.beta_normalized(RANDOM, group_size=4)
    knobs = {"min_value": add, "max_value": scale + add}
    mapped = beta.beta_normalized(scale * RANDOM + add, group_size=4, **knobs)
    np.testing.assert_allclose(mapped, plain, rtol=2e-4)

  def test_all_right_and_all_wrong_groups_get_exactly_zero(self):
    actual = beta.beta_normalized(_binary(0, 4, 1, 2), group_size=4)
    np.testing.assert_array_equal(actual[:8], 0.0)
    self.assertGreater(float(jnp.abs(actual[8:]).min()), 0.0)

  def test_the_rate_is_that_of_the_batch(self):
    """A worked example of the spec's equations, in plain numpy."""
    rewards = np.asarray(_binary(1, 3, 2, 2, 1, size=8))
    p = rewards.reshape(-1, 8).mean(axis=1)
    m, v = p.mean(), p.var(ddof=1)
    c = m * (1 - m) / v - 1
    f = stats.beta.pdf(p, 1 + c * m / 3, 1 + c * (1 - m) / 3)
    expected = (rewards.reshape(-1, 8) - p[:, None]) / f[:, None]
    np.testing.assert_allclose(
      beta.beta_normalized(jnp.asarray(rewards), group_size=8),
      expected.reshape(-1),
      rtol=1e-4,
    )

  def test_the_weight_of_a_rare_rate_is_bounded(self):
    counts = [2] * 63 + [7]  # a spike at 1/4, one group far outside of it
    rewards = _binary(*counts, size=8)
    actual = beta.beta_normalized(rewards, group_size=8, max_weight=50.0)
    self.assertAlmostEqual(float(actual[-8]), 50.0 / 8, places=4)
    chex.assert_tree_all_finite(beta.beta_normalized(rewards, group_size=8))

  def test_a_group_of_one_gets_zero(self):
    np.testing.assert_array_equal(
      beta.beta_normalized(RANDOM, group_size=1), 0.0
    )

  def test_rates_outside_the_range_count_as_its_ends(self):
    rewards = jnp.array([5.0, 3.0, 1.0, 0.0, 0.0, 1.0])
    actual = beta.beta_normalized(rewards, group_size=2)
    chex.assert_tree_all_finite(actual)
    np.testing.assert_allclose(actual[0] / 1e6, 1.0)

  def test_dropped_rows_are_not_seen(self):
    rewards, weights = _binary(1, 2, 3), jnp.ones(12).at[5].set(0.0)
    seen = [
      beta.beta_normalized(rewards.at[5].set(x), weights, group_size=4)
      for x in (0.0, 1.0, jnp.nan)
    ]
    chex.assert_trees_all_equal(*seen)
    self.assertEqual(float(seen[0][5]), 0.0)

  def test_a_group_without_rows_is_no_prompt(self):
    rewards, weights = _binary(1, 2, 3, 0), jnp.ones(16).at[12:].set(0.0)
    np.testing.assert_allclose(
      beta.beta_normalized(rewards, weights, group_size=4)[:12],
      beta.beta_normalized(rewards[:12], group_size=4),
      rtol=1e-6,
    )


class ComponentsTest(chex.TestCase):
  def test_it_is_the_mean_of_what_each_would_get(self):
    parts = jnp.stack([_binary(1, 2, 3), 2.0 * _binary(3, 1, 0)], axis=1)
    ranges = ((0.0, 1.0), (0.0, 2.0))
    each = [
      beta.beta_normalized(x, group_size=4, min_value=low, max_value=high)
      for x, (low, high) in zip(parts.T, ranges, strict=True)
    ]
    np.testing.assert_allclose(
      beta.beta_normalized_components(parts, group_size=4, ranges=ranges),
      (each[0] + each[1]) / 2,
      rtol=1e-6,
    )

  def test_a_constant_one_adds_nothing_and_is_counted(self):
    one = _binary(1, 2, 3)[:, None]
    for other in (0.3, jnp.nan):
      both = jnp.concatenate([one, jnp.full_like(one, other)], axis=1)
      np.testing.assert_allclose(
        2.0 * beta.beta_normalized_components(both, group_size=4),
        beta.beta_normalized(one[:, 0], group_size=4),
        rtol=1e-6,
      )

  def test_a_range_for_each_or_one_for_all(self):
    with self.assertRaisesRegex(ValueError, "each of 3 components, got 2"):
      beta.beta_normalized_components(
        jnp.ones((8, 3)), group_size=4, ranges=((0, 1), (0, 1))
      )


class DensityTest(chex.TestCase):
  @parameterized.parameters(1e-3, 0.5, 7.0, 40.0, 1e3, 1e6)
  def test_is_that_of_scipy_at_any_concentration(self, size):
    for mode in (0.02, 0.5, 0.9):
      mode = float(np.float32(mode))
      width = 3 * np.sqrt(mode * (1 - mode) / (size + 1))
      rates = np.clip(mode + width * np.linspace(-1, 1, 9), 0.001, 0.999)
      rates = rates.astype(np.float32)
      density = beta.Density(jnp.float32(mode), jnp.float32(size))
      expected = stats.beta.logpdf(
        rates.astype(float), 1 + size * mode, 1 + size * (1 - mode)
      )
      actual = density.log_prob(jnp.asarray(rates))
      np.testing.assert_allclose(actual, expected, rtol=3e-4, atol=3e-4)

  def test_vanishes_at_the_ends_but_for_a_uniform_one(self):
    ends = jnp.array([0.0, 1.0])
    some = beta.Density(jnp.float32(0.3), jnp.float32(2.0))
    np.testing.assert_array_equal(some.log_prob(ends), -jnp.inf)
    for mode in (0.0, 0.3, 1.0):
      flat = beta.Density(jnp.float32(mode), jnp.float32(0.0))
      np.testing.assert_allclose(flat.log_prob(ends), 0.0, atol=1e-6)
