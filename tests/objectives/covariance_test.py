"""Clip-Cov and KL-Cov: how many tokens are marked, and which."""

import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import covariance, surrogates
from jaxrl_llm.testing import rollouts


def _setting():
  """Log-probs, credit and a mask with a hole and an empty row."""
  rollout = rollouts.make_rollout(groups=4, length=12)
  mask = rollout.mask.at[0, 1].set(False).at[3].set(False)
  credit = jax.random.normal(jax.random.key(1), (mask.shape[0], 1))
  return rollout.old_logprobs, jnp.where(mask, credit, 0.0), mask


def _uniforms(mask, seed=0):
  return jax.random.uniform(jax.random.key(seed), mask.shape)


def _drop(seed=0, **knobs):
  logprobs, credit, mask = _setting()
  return covariance.clip_cov_drop(
    logprobs,
    jnp.zeros(mask.shape),
    credit,
    mask,
    _uniforms(mask, seed),
    **knobs,
  )


class TokenCovarianceTest(chex.TestCase):
  def test_its_mean_is_the_covariance(self):
    logprobs, credit, mask = _setting()
    ours = covariance.token_covariance(logprobs, credit, mask)
    kept = np.asarray(mask)
    pairs = np.stack([np.asarray(x)[kept] for x in (logprobs, credit)])
    expected = np.cov(pairs, ddof=0)[0, 1]
    np.testing.assert_allclose(ours.sum() / kept.sum(), expected, rtol=1e-4)

  @parameterized.parameters(0.0, 0.9, -3.3, 1000.7)
  def test_equal_credit_has_none(self, constant):
    logprobs, credit, mask = _setting()
    equal = jnp.full_like(credit, constant)
    ours = covariance.token_covariance(logprobs, equal, mask)
    np.testing.assert_array_equal(ours, 0.0)

  def test_padding_is_not_read(self):
    logprobs, credit, mask = _setting()
    clean = covariance.token_covariance(logprobs, credit, mask)
    for junk in (jnp.inf, -jnp.inf, jnp.nan):
      dirty = (jnp.where(mask, x, junk) for x in (logprobs, credit))
      chex.assert_trees_all_equal(
        clean, covariance.token_covariance(*dirty, mask)
      )

  def test_no_tokens_at_all_is_zero(self):
    logprobs, credit, mask = _setting()
    none = covariance.token_covariance(logprobs, credit, mask & False)
    np.testing.assert_array_equal(none, 0.0)


class ClipCovTest(chex.TestCase):
  WIDE = {"cov_low": 0.05, "cov_high": 5.0}

  @parameterized.parameters(2e-4, 0.05, 0.1, 1.0)
  def test_marks_as_many_candidates_as_there_are_or_may_be(self, fraction):
    logprobs, credit, mask = _setting()
    values = covariance.token_covariance(logprobs, credit, mask)
    candidates = mask & (values > 0.05) & (values < 5.0)
    drop = _drop(fraction=fraction, **self.WIDE)
    allowed = max(1, math.floor(fraction * int(mask.sum())))
    self.assertEqual(int(drop.sum()), min(allowed, int(candidates.sum())))
    self.assertFalse(bool((drop & ~candidates).any()))
    self.assertGreater(int(candidates.sum()), 3)

  def test_no_candidates_no_marks(self):
    self.assertFalse(bool(_drop(fraction=1.0, cov_low=1e6, cov_high=1e7).any()))

  def test_other_numbers_mark_other_tokens_each_as_often(self):
    seen = sum(
      np.asarray(_drop(seed, fraction=2e-4, **self.WIDE), int)
      for seed in range(60)
    )
    self.assertEqual(seen.sum(), 60)
    self.assertGreater((seen > 0).sum(), 5)

  def test_tokens_that_ppo_has_silenced_are_no_candidates(self):
    logprobs, credit, mask = _setting()
    args = (credit, mask, _uniforms(mask))
    for away in (1.0, -1.0):  # too high, too low: half of them are silent
      far = jnp.full(mask.shape, away)
      drop = covariance.clip_cov_drop(
        logprobs, far, *args, fraction=1.0, **self.WIDE
      )
      self.assertTrue(bool((credit[drop] * away < 0).all()))
      self.assertTrue(bool(drop.any()))

  def test_jit_changes_nothing(self):
    knobs = {"fraction": 0.1} | self.WIDE
    np.testing.assert_array_equal(
      _drop(**knobs), jax.jit(lambda: _drop(**knobs))()
    )


class KlCovTest(chex.TestCase):
  @parameterized.parameters(2e-4, 0.05, 0.5, 1.0)
  def test_marks_the_largest(self, fraction):
    logprobs, credit, mask = _setting()
    select = covariance.kl_cov_select(logprobs, credit, mask, fraction=fraction)
    count = max(1, math.floor(fraction * int(mask.sum())))
    self.assertEqual(int(select.sum()), count)
    self.assertFalse(bool((select & ~mask).any()))
    values = covariance.token_covariance(logprobs, credit, mask)
    if fraction < 1:
      rest = values[mask & ~select].max()
      self.assertGreaterEqual(float(values[select].min()), float(rest))

  def test_equal_credit_marks_as_many(self):
    logprobs, credit, mask = _setting()
    select = covariance.kl_cov_select(
      logprobs, jnp.ones_like(credit), mask, fraction=0.1
    )
    self.assertEqual(int(select.sum()), int(0.1 * int(mask.sum())))

  def test_no_tokens_no_marks(self):
    logprobs, credit, mask = _setting()
    select = covariance.kl_cov_select(logprobs, credit, mask & False)
    self.assertFalse(bool(select.any()))

  @parameterized.parameters(0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 2e-4, 2e-3)
  def test_counts_as_python_does(self, fraction):
    for tokens in range(1, 240, 7):
      mask = (jnp.arange(240) < tokens)[None, :]
      zeros = jnp.zeros(mask.shape)
      select = covariance.kl_cov_select(zeros, zeros, mask, fraction=fraction)
      self.assertEqual(int(select.sum()), max(1, int(fraction * tokens)))

  def test_marked_tokens_pay_for_their_distance(self):
    log_ratio = jnp.array([[0.3, -0.2, 0.0, 0.5]])
    credit = jnp.array([[1.0, -1.0, 2.0, 0.5]])
    select = jnp.array([[True, True, True, False]])
    loss = lambda d: covariance.kl_cov_surrogate(  # noqa: E731
      d, credit, select, coef=2.0
    )[0].sum()
    plain = lambda d: surrogates.unclipped_surrogate(d, credit)[0].sum()  # noqa: E731
    value, grad = jax.value_and_grad(loss)(log_ratio)
    base, base_grad = jax.value_and_grad(plain)(log_ratio)
    np.testing.assert_allclose(value - base, 1.0, rtol=1e-5)
    np.testing.assert_allclose(
      grad - base_grad, [[2.0, -2.0, 0.0, 0.0]], atol=1e-6
    )

  @parameterized.parameters(0.0, 1.5, float("nan"))
  def test_a_share_outside_its_range_is_refused(self, fraction):
    with self.assertRaisesRegex(ValueError, "fraction"):
      covariance.check_fraction(fraction)
