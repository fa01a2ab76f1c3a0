"""How sure the policy was, and the credit that this moves."""

import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import confidence

LOGPROBS = jnp.array([[-0.01, -2.0, -0.05, -0.02, -0.01]])


def _random(rows=6, length=13):
  keys = jax.random.split(jax.random.key(0), 2)
  lengths = jax.random.randint(keys[1], (rows, 1), 1, length + 1)
  mask = jnp.arange(length)[None, :] < lengths
  return -jax.random.exponential(keys[0], (rows, length)), mask


class ConfidenceTest(chex.TestCase):
  def test_of_five_tokens_it_is_the_least_likely_one(self):
    mask = jnp.ones((1, 5), bool)
    found = confidence.low_probability_confidence(LOGPROBS, mask)
    np.testing.assert_allclose(found, math.exp(-2.0), rtol=1e-6)

  @parameterized.parameters(*range(1, 12))
  def test_takes_a_fifth_of_the_tokens_rounded_up(self, length):
    """From the least likely, -1, to the others, 0: c tells how many."""
    logprobs = -(jnp.arange(12) == 3).astype(jnp.float32)[None, :]
    mask = (jnp.arange(12) >= 12 - length)[None, :].at[0, 3].set(True)
    count = math.ceil(int(mask.sum()) / 5)
    found = confidence.low_probability_confidence(logprobs, mask)
    np.testing.assert_allclose(found, math.exp(-1 / count), rtol=1e-6)

  @parameterized.parameters(0.1, 0.2, 0.7, 1.0)
  def test_is_at_most_the_inverse_perplexity(self, fraction):
    logprobs, mask = _random()
    found = confidence.low_probability_confidence(
      logprobs, mask, fraction=fraction
    )
    mean = jnp.where(mask, logprobs, 0.0).sum(axis=1) / mask.sum(axis=1)
    self.assertTrue(bool((found <= jnp.exp(mean) + 1e-6).all()))
    self.assertTrue(bool((found > 0).all()))
    if fraction == 1.0:
      np.testing.assert_allclose(found, jnp.exp(mean), rtol=1e-5)

  def test_padding_is_not_read_and_nothing_is_certain(self):
    logprobs, mask = _random()
    clean = confidence.low_probability_confidence(logprobs, mask)
    for junk in (jnp.nan, -jnp.inf, jnp.inf):
      dirty = jnp.where(mask, logprobs, junk)
      chex.assert_trees_all_equal(
        confidence.low_probability_confidence(dirty, mask), clean
      )
    empty = confidence.low_probability_confidence(logprobs, mask & False)
    np.testing.assert_array_equal(empty, 1.0)

  def test_a_prompt_s_first_token_has_no_log_prob(self):
    mask = jnp.array([[False, True, True, True], [True, True, True, True]])
    found = confidence.own_prompt_tokens(mask)
    np.testing.assert_array_equal(found, [[0, 0, 1, 1], [0, 1, 1, 1]])

  def test_a_bad_fraction_is_refused(self):
    with self.assertRaisesRegex(ValueError, "fraction must be in"):
      confidence.check_fraction(0.0)


class ShiftTest(chex.TestCase):
  A = jnp.array([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
  RIGHT = jnp.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]) > 0
  PROMPT = jnp.repeat(jnp.array([0.4, 0.6, 0.9]), 4)
  SURE = jnp.array([0.1353, 0.7, 0.4, 0.0, 0.1, 0.7, 0.4, 1, 0.3, 0.2, 1, 0.9])

  def _shifted(self, **knobs):
    return confidence.confidence_shifted(
      self.A, self.RIGHT, self.PROMPT, self.SURE, group_size=4, **knobs
    )

  def test_a_row_by_hand(self):
    self.assertAlmostEqual(float(self._shifted()[0]), 1.0794, places=4)

  def test_without_alpha_nothing_moves(self):
    chex.assert_trees_all_equal(self._shifted(alpha=0.0), self.A)

  def test_the_rarer_of_equal_rewards_gets_more_and_less_than_alpha(self):
    found = self._shifted()
    self.assertGreater(float(found[0]), float(found[1]))
    self.assertGreater(float(found[3]), float(found[2]))
    self.assertLess(float(jnp.abs(found - self.A).max()), 0.3)

  def test_the_mean_of_a_group_is_that_of_the_differences(self):
    means = self._shifted().reshape(3, 4).mean(axis=1)
    gaps = 0.3 * (self.PROMPT - self.SURE).reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(means[jnp.array([0, 2])], gaps[::2], rtol=1e-5)

  def test_a_group_without_success_is_left_alone(self):
    np.testing.assert_array_equal(self._shifted()[4:8], 0.0)

  def test_both_readings_of_whom_it_moves(self):
    found = self._shifted(skip_all_correct=True)
    np.testing.assert_array_equal(found[8:], 0.0)
    chex.assert_trees_all_equal(found[:8], self._shifted()[:8])
    found = self._shifted(correct_only=True)
    chex.assert_trees_all_equal(found[2:4], self.A[2:4])
    chex.assert_trees_all_equal(found[:2], self._shifted()[:2])

  def test_dropped_rows_neither_move_nor_count(self):
    weights = jnp.ones(12).at[jnp.array([0, 1])].set(0.0)
    found = self._shifted(weights=weights)
    chex.assert_trees_all_equal(found[:4], self.A[:4])
