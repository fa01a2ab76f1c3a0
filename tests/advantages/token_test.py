"""Rewards on tokens, returns, whitening: identities, holes, padding."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import token

MASK = jnp.array(
  [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]], bool
)
VALUES = jax.random.normal(jax.random.key(0), MASK.shape)
DIRTY = jnp.where(MASK, VALUES, jnp.nan)


class RewardsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_the_last_own_token_earns_the_reward(self):
    actual = self.variant(token.last_token_rewards)(jnp.arange(1.0, 5.0), MASK)
    expected = np.zeros(MASK.shape)
    expected[0, 3], expected[1, 0], expected[3, 4] = 1, 2, 4
    np.testing.assert_array_equal(actual, expected)

  def test_kl_of_tokens_adds_up_to_that_of_the_completion(self):
    reference = VALUES[::-1]
    rewards = jnp.arange(1.0, 5.0)
    on_tokens = token.kl_penalized(
      token.last_token_rewards(rewards, MASK), VALUES, reference, MASK, beta=0.3
    )
    whole = token.kl_penalized_outcome(
      rewards, VALUES, reference, MASK, beta=0.3
    )
    has_tokens = np.array([0, 1, 3])  # the reward of an empty row has no place
    np.testing.assert_allclose(
      on_tokens.sum(axis=1)[has_tokens], whole[has_tokens], rtol=1e-6
    )
    self.assertEqual(float(whole[2]), 3.0)

  def test_kl_reads_no_padding_and_gives_no_gradient(self):
    def total(logprobs):
      return token.kl_penalized(
        jnp.zeros(MASK.shape), logprobs, DIRTY, MASK, beta=1.0
      ).sum()

    chex.assert_tree_all_finite(total(DIRTY + 1.0))
    np.testing.assert_array_equal(jax.grad(total)(DIRTY + 1.0), 0.0)

  def test_equal_policies_leave_rewards_exactly_as_they_are(self):
    rewards = jnp.array([0.1, 0.9, 1 / 3, 1000.7])
    actual = token.kl_penalized_outcome(rewards, DIRTY, DIRTY, MASK, beta=0.05)
    np.testing.assert_array_equal(actual, rewards)


class ReturnsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_a_masked_token_neither_earns_nor_takes_time(self):
    fn = self.variant(lambda r: token.discounted_returns(r, MASK, gamma=0.5))
    rewards = jnp.array([[1.0, 2.0, 50.0, 4.0, 50.0]]).repeat(4, axis=0)
    expected = [[3.0, 4.0, 0, 4.0, 0], [1.0, 0, 0, 0, 0], [0.0] * 5]
    expected.append([0, 2 + 32.25, 50 + 14.5, 4 + 25, 50])
    np.testing.assert_allclose(fn(rewards), expected)

  def test_without_discount_it_is_the_sum_of_what_comes(self):
    clean = np.where(MASK, VALUES, 0.0)
    sums = np.cumsum(clean[:, ::-1], axis=1)[:, ::-1]
    actual = token.discounted_returns(DIRTY, MASK, carry=True)
    np.testing.assert_allclose(actual, sums, rtol=1e-5, atol=1e-6)
    own = token.discounted_returns(DIRTY, MASK)
    np.testing.assert_allclose(own, np.where(MASK, sums, 0), atol=1e-6)

  def test_gamma_zero_is_the_reward_itself(self):
    actual = token.discounted_returns(DIRTY, MASK, gamma=0.0)
    np.testing.assert_array_equal(actual, np.where(MASK, VALUES, 0.0))

  def test_dtype_is_that_of_the_rewards(self):
    with jax.enable_x64(True):
      rewards = jnp.asarray(np.asarray(VALUES), jnp.float64)
      self.assertEqual(
        token.discounted_returns(rewards, MASK).dtype, jnp.float64
      )

  @parameterized.parameters(-0.1, 1.01, float("nan"))
  def test_a_bad_discount_is_refused(self, gamma):
    with self.assertRaisesRegex(ValueError, "gamma"):
      token.discounted_returns(VALUES, MASK, gamma=gamma)


class WhitenTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(ddof=(0, 1), variance=("add", "at_least"))
  def test_mean_is_0_and_variance_1_over_the_mask(self, ddof, variance):
    fn = self.variant(
      lambda x: token.whiten(x, MASK, ddof=ddof, variance=variance)
    )
    own = np.asarray(fn(DIRTY))[np.asarray(MASK)]
    self.assertAlmostEqual(float(own.mean()), 0.0, places=6)
    self.assertAlmostEqual(float(own.var(ddof=ddof)), 1.0, places=5)
    np.testing.assert_array_equal(fn(DIRTY)[~np.asarray(MASK)], 0.0)

  def test_the_two_rules_part_where_the_variance_is_small(self):
    values = jnp.array([[0.0, 2e-4]])
    both = jnp.ones((1, 2), bool)
    knobs = {"ddof": 0, "eps": 1e-8}
    added = token.whiten(values, both, variance="add", **knobs)
    bound = token.whiten(values, both, variance="at_least", **knobs)
    np.testing.assert_allclose(added, [[-(0.5**0.5), 0.5**0.5]], rtol=1e-5)
    np.testing.assert_allclose(bound, [[-1.0, 1.0]], rtol=1e-5)

  def test_moments_are_those_of_the_own_tokens(self):
    own = np.asarray(VALUES)[np.asarray(MASK)]
    mean, variance = token.moments(DIRTY, MASK, ddof=1)
    np.testing.assert_allclose(mean, own.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, own.var(ddof=1), rtol=1e-5)

  @parameterized.parameters(0, 1)
  def test_one_token_or_none_gives_zero(self, tokens):
    mask = jnp.arange(20).reshape(4, 5) < tokens
    actual = token.whiten(jnp.where(mask, 3.0, jnp.nan), mask)
    np.testing.assert_array_equal(actual, 0.0)
    chex.assert_tree_all_finite(token.moments(VALUES, mask, ddof=1))

  @parameterized.parameters(
    {"ddof": 2}, {"eps": 0.0}, {"variance": "both"}, {"eps": float("nan")}
  )
  def test_a_bad_knob_is_refused(self, **knobs):
    (name,) = knobs
    with self.assertRaisesRegex(ValueError, name):
      token.whiten(VALUES, MASK, **knobs)
