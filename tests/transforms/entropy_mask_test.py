"""Tokens of high entropy: how many, which, and the mean of a bonus."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import weighting
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import entropy_mask


def _entropies(shape=(8, 6), seed=0):
  keys = jax.random.split(jax.random.key(seed))
  mask = jax.random.bernoulli(keys[1], 0.7, shape)
  return jax.random.uniform(keys[0], shape), mask


class QuantileTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(q=[0.0, 0.1, 0.2, 0.5, 0.8, 0.95, 1.0], seed=[0, 1, 2])
  def test_is_numpys_over_what_the_mask_leaves(self, q, seed):
    values, mask = _entropies(seed=seed)
    run = self.variant(functools.partial(entropy_mask.masked_quantile, q=q))
    expected = np.quantile(np.asarray(values)[np.asarray(mask)], q)
    np.testing.assert_allclose(run(values, mask), expected, rtol=1e-6)

  def test_of_one_value_is_that_value(self):
    values = jnp.full((2, 3), jnp.nan).at[1, 1].set(0.3)
    mask = jnp.zeros((2, 3), bool).at[1, 1].set(True)
    for q in (0.0, 0.37, 1.0):
      found = entropy_mask.masked_quantile(values, mask, q)
      self.assertEqual(float(found), float(jnp.float32(0.3)))

  def test_of_nothing_is_zero(self):
    values = jnp.full((2, 3), jnp.nan)
    found = entropy_mask.masked_quantile(values, jnp.zeros((2, 3), bool), 0.5)
    self.assertEqual(float(found), 0.0)


class TopEntropyTest(chex.TestCase):
  @parameterized.parameters(0.1, 0.2, 0.5, 0.9)
  def test_keeps_that_share_of_the_tokens(self, rho):
    entropy, mask = _entropies((40, 50))
    keep = entropy_mask.top_entropy(entropy, mask, rho=rho)
    count = int(mask.sum())
    self.assertAlmostEqual(float(keep.sum() / count), rho, delta=2 / count)
    self.assertFalse(bool((keep & ~mask).any()))

  def test_all_and_the_maximum_are_the_ends(self):
    entropy, mask = _entropies()
    whole = entropy_mask.top_entropy(entropy, mask, rho=1.0)
    np.testing.assert_array_equal(whole, mask)
    one = entropy_mask.top_entropy(entropy, mask, rho=0.0)
    self.assertEqual(int(one.sum()), 1)
    highest = jnp.where(mask, entropy, -1.0).max()
    self.assertEqual(float(entropy[one][0]), float(highest))

  def test_a_greater_share_holds_the_smaller(self):
    entropy, mask = _entropies()
    before = jnp.zeros_like(mask)
    for rho in (0.0, 0.1, 0.2, 0.4, 0.7, 1.0):
      keep = entropy_mask.top_entropy(entropy, mask, rho=rho)
      self.assertFalse(bool((before & ~keep).any()))
      before = keep

  def test_what_is_kept_has_more_entropy_than_the_rest(self):
    entropy, mask = _entropies()
    keep = entropy_mask.top_entropy(entropy, mask, rho=0.3)
    lowest = float(entropy[keep].min())
    self.assertGreater(lowest, float(entropy[mask & ~keep].max()))

  def test_equal_entropies_are_all_kept(self):
    entropy, mask = jnp.full((3, 4), 0.7), jnp.ones((3, 4), bool)
    keep = entropy_mask.top_entropy(entropy, mask, rho=0.2)
    np.testing.assert_array_equal(keep, mask)

  def test_the_boundary_token_is_in_whatever_the_dtype(self):
    # (1 - 0.7) * 10 is 3.0000000000000004 in float64 and 3 in float32: a
    # threshold a hair above the fourth entropy would leave it out.
    values = [0.0, 0.0, 0.0, 1e-9, *[1.0] * 7]
    with jax.enable_x64(True):
      for dtype in (jnp.float32, jnp.float64):
        entropy = jnp.asarray([values], dtype)
        mask = jnp.ones(entropy.shape, bool)
        keep = entropy_mask.top_entropy(entropy, mask, rho=0.7)
        self.assertEqual(int(keep.sum()), 8)

  def test_padding_is_not_read(self):
    entropy, mask = _entropies()
    clean = entropy_mask.top_entropy(entropy, mask, rho=0.2)
    for junk in (jnp.inf, -jnp.inf, jnp.nan):
      dirty = jnp.where(mask, entropy, junk)
      np.testing.assert_array_equal(
        entropy_mask.top_entropy(dirty, mask, rho=0.2), clean
      )

  def test_no_tokens_are_no_tokens(self):
    entropy, mask = _entropies()
    keep = entropy_mask.top_entropy(entropy, jnp.zeros_like(mask), rho=0.2)
    self.assertFalse(bool(keep.any()))

  @parameterized.parameters(-0.1, 1.1, float("nan"))
  def test_a_share_out_of_bounds_is_refused(self, rho):
    with self.assertRaisesRegex(ValueError, "rho must be a share"):
      entropy_mask.top_entropy_mask(rho=rho)


class BonusFactorTest(chex.TestCase):
  @parameterized.named_parameters(
    ("token_mean", weighting.token_mean),
    ("sequence_mean", weighting.sequence_mean),
    ("sequence_sum", weighting.sequence_sum),
    ("fixed_length", weighting.fixed_length),
  )
  def test_gives_the_mean_over_the_tokens_whatever_the_weights(self, weigh):
    entropy, mask = _entropies()
    mask = mask.at[3].set(False)
    rows = jnp.ones(8).at[5].set(0.0)
    tokens = entropy_mask.top_entropy(entropy, mask, rho=0.5)
    weights = weigh(mask, rows)
    factor = entropy_mask.bonus_factor(weights, tokens)
    counted = tokens & (rows > 0)[:, None]
    np.testing.assert_allclose(
      (weights * factor * entropy).sum(), entropy[counted].mean(), rtol=1e-5
    )

  def test_of_no_tokens_is_zero(self):
    factor = entropy_mask.bonus_factor(
      jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    )
    np.testing.assert_array_equal(factor, 0.0)


class TransformTest(chex.TestCase):
  def _run(self, rollout, **knobs):
    transform = entropy_mask.top_entropy_mask(**knobs)
    return transform.update(rollout, transform.init())[0]

  def test_marks_tokens_over_the_whole_batch_and_leaves_the_mask(self):
    rollout = rollouts.make_rollout()
    entropy = rollouts.make_scores(rollout).entropy
    after = self._run(rollout.replace(extras={"old_entropy": entropy}), rho=0.3)
    expected = entropy_mask.top_entropy(entropy, rollout.mask, rho=0.3)
    np.testing.assert_array_equal(after.extras["top_entropy"], expected)
    np.testing.assert_array_equal(after.extras["keep"], expected * 1.0)
    np.testing.assert_array_equal(after.mask, rollout.mask)

  def test_multiplies_what_was_kept_before(self):
    rollout = rollouts.make_rollout()
    entropy = rollouts.make_scores(rollout).entropy
    before = jnp.zeros(rollout.mask.shape).at[::2].set(0.5)
    extras = {"old_entropy": entropy, "keep": before}
    after = self._run(rollout.replace(extras=extras), rho=0.3)
    expected = before * after.extras["top_entropy"]
    np.testing.assert_array_equal(after.extras["keep"], expected)

  def test_dropped_rows_have_no_part_in_the_quantile(self):
    rollout = rollouts.make_rollout()
    entropy = rollouts.make_scores(rollout).entropy.at[0].set(100.0)
    rollout = rollout.replace(
      weights=rollout.weights.at[0].set(0.0), extras={"old_entropy": entropy}
    )
    keep = self._run(rollout, rho=0.3).extras["top_entropy"]
    self.assertFalse(bool(keep[0].any()))
    count = int(rollout.mask[1:].sum())
    self.assertAlmostEqual(float(keep.sum() / count), 0.3, delta=2 / count)

  def test_what_is_missing_is_named(self):
    with self.assertRaisesRegex(ValueError, "'old_scores' and 'entropy'"):
      self._run(rollouts.make_rollout(), rho=0.2)
