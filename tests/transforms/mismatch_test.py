"""Numbers about the gap to the sampler."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.transforms import mismatch, rollout_correction

RATIOS = jnp.array([[2.0, 0.5, 4.0], [1.0, 0.25, 7.0], [1.0, 1.0, 1.0]])
MASK = jnp.array([[True, True, True], [True, True, False], [False] * 3])
OLD = jnp.full((3, 3), -1.0)
SAMPLED = OLD - jnp.log(RATIOS)


def _weights(level="token", **knobs):
  gap = rollout_correction.log_mismatch(OLD, SAMPLED, MASK)
  log_ratio = rollout_correction.log_weights(gap, MASK, level=level)
  weights = rollout_correction.rollout_weights(
    OLD, SAMPLED, MASK, level=level, **knobs
  )
  return weights, log_ratio


class MismatchMetricsTest(chex.TestCase):
  def test_equal_policies_have_none(self):
    found = mismatch.mismatch_metrics(OLD, OLD, MASK)
    self.assertTrue(all(value == 0 for value in found.values()))

  def test_they_are_what_they_say(self):
    found = mismatch.mismatch_metrics(OLD, SAMPLED, MASK)
    ratios = np.array([2.0, 0.5, 4.0, 1.0, 0.25])
    rows = np.array([4.0, 0.25])
    expected = {
      "rollout_kl": -np.log(ratios).mean(),
      "rollout_k3": (ratios - 1 - np.log(ratios)).mean(),
      "rollout_chi2_token": (ratios**2).mean() - 1,
      "rollout_chi2_seq": (rows**2).mean() - 1,
    }
    chex.assert_trees_all_close(found, expected, rtol=1e-5)

  @parameterized.parameters(jnp.nan, jnp.inf, -jnp.inf)
  def test_padding_may_hold_anything(self, junk):
    clean = mismatch.mismatch_metrics(OLD, SAMPLED, MASK)
    dirty = mismatch.mismatch_metrics(jnp.where(MASK, OLD, junk), SAMPLED, MASK)
    chex.assert_trees_all_equal(clean, dirty)


class WeightMetricsTest(chex.TestCase):
  def test_tokens(self):
    found = mismatch.weight_metrics(*_weights(), MASK)
    applied = np.array([2.0, 0.5, 2.0, 1.0, 0.25])
    expected = {
      "rollout_is_mean": applied.mean(),
      "rollout_is_std": applied.std(),
      "rollout_is_min": 0.25,
      "rollout_is_max": 2.0,
      "rollout_is_ess": applied.mean() ** 2 / (applied**2).mean(),
      "rollout_is_changed": 0.2,
      "rollout_raw_mean": 7.75 / 5,
      "rollout_raw_min": 0.25,
      "rollout_raw_max": 4.0,
      "rollout_fraction_high": 0.2,
      "rollout_fraction_low": 0.2,
    }
    chex.assert_trees_all_close(found, expected, rtol=1e-5)

  def test_rows_without_tokens_count_where_asked(self):
    arrays = _weights("sequence", high=3.0)
    found = mismatch.weight_metrics(*arrays, MASK, high=3.0)
    self.assertEqual(found["rollout_fraction_high"], 0.5)
    found = mismatch.weight_metrics(
      *arrays, MASK, high=3.0, count_empty_rows=True
    )
    np.testing.assert_allclose(found["rollout_fraction_high"], 1 / 3)
    np.testing.assert_allclose(found["rollout_raw_max"], 4.0, rtol=1e-6)

  def test_the_effective_share_is_one_for_equal_weights_and_falls(self):
    ones = jnp.where(MASK, 1.0, 0.0)
    found = mismatch.weight_metrics(ones, jnp.zeros((3, 3)), MASK)
    self.assertEqual(found["rollout_is_ess"], 1.0)
    one = ones.at[0].set(0.0).at[1, 1].set(0.0)
    found = mismatch.weight_metrics(one, jnp.zeros((3, 3)), MASK)
    np.testing.assert_allclose(found["rollout_is_ess"], 0.2, rtol=1e-6)

  def test_no_tokens_is_zero_and_finite(self):
    none = jnp.zeros_like(MASK)
    found = mismatch.weight_metrics(jnp.zeros((3, 3)), OLD, none)
    self.assertTrue(all(value == 0 for value in found.values()), found)
    found = mismatch.mismatch_metrics(OLD, SAMPLED, none)
    self.assertTrue(all(value == 0 for value in found.values()), found)


class RejectedTest(chex.TestCase):
  def test_shares_of_tokens_and_of_rows_that_lose_any(self):
    keep = MASK.at[0, 0].set(False)
    found = mismatch.rejected(MASK, keep)
    np.testing.assert_allclose(found["rejected_tokens"], 0.2, rtol=1e-6)
    self.assertEqual(found["rejected_rows"], 0.5)
