"""Transforms that weigh and drop: what they write, and what they leave."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import weighting
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import (
  chain,
  off_policy,
  rejection,
  rollout_correction,
)


def _rollout(scale=0.5):
  """As the step hands it over: trainer, sampler, and a row that is dropped."""
  rollout = rollouts.make_rollout(length=8)
  noise = scale * jax.random.normal(jax.random.key(3), rollout.mask.shape)
  sampled = rollout.old_logprobs
  return rollout.replace(
    old_logprobs=sampled,
    weights=rollout.weights.at[5].set(0.0),
    extras={
      "trainer_logprobs": sampled - noise,
      "sampler_logprobs": sampled,
    },
  )


def _apply(transform, rollout):
  return jax.jit(transform.update)(rollout, transform.init())[0]


def _counted(rollout):
  return rollout.mask & (rollout.weights > 0)[:, None]


class ImportanceWeightedTest(chex.TestCase):
  def test_it_writes_the_weights_and_the_trainers_log_probs(self):
    start = _rollout()
    end = _apply(off_policy.importance_weighted(), start)
    expected = rollout_correction.rollout_weights(
      start.extras["trainer_logprobs"], start.old_logprobs, _counted(start)
    )
    np.testing.assert_allclose(end.extras["rollout_is"], expected, rtol=1e-6)
    chex.assert_trees_all_equal(
      end.old_logprobs, start.extras["trainer_logprobs"]
    )
    restored = end.replace(old_logprobs=start.old_logprobs)
    chex.assert_trees_all_equal(restored.replace(extras=start.extras), start)

  def test_its_numbers_are_of_rows_that_count(self):
    start = _rollout()
    junk = start.extras["trainer_logprobs"].at[5].set(-500.0)
    other = start.replace(extras=start.extras | {"trainer_logprobs": junk})
    one, two = (
      _apply(off_policy.importance_weighted(), r).extras for r in (start, other)
    )
    names = [name for name in one if name.startswith("metric/")]
    self.assertContainsSubset(
      {"metric/rollout_k3", "metric/rollout_chi2_seq", "metric/rollout_is_ess"},
      names,
    )
    chex.assert_tree_all_finite({name: one[name] for name in names})
    chex.assert_trees_all_equal(*({n: x[n] for n in names} for x in (one, two)))
    self.assertGreater(one["metric/rollout_raw_max"], 2.0)
    self.assertEqual(one["metric/rollout_is_max"], 2.0)

  @parameterized.parameters("token", "sequence", "geometric")
  def test_normalized_weights_have_mean_one_and_the_log_says_from_where(
    self, level
  ):
    start = _rollout()
    end = _apply(
      off_policy.importance_weighted(level=level, normalize=True), start
    )
    expected = rollout_correction.rollout_weights(
      start.extras["trainer_logprobs"],
      start.old_logprobs,
      _counted(start),
      level=level,
      normalize=True,
    )
    np.testing.assert_allclose(end.extras["rollout_is"], expected, rtol=1e-6)
    self.assertNotAlmostEqual(float(end.extras["metric/rollout_is_mean"]), 1.0)

  def test_two_of_them_multiply(self):
    once = off_policy.importance_weighted()
    one = _apply(once, _rollout()).extras["rollout_is"]
    two = _apply(chain.chain(once, once), _rollout()).extras["rollout_is"]
    np.testing.assert_allclose(two, one**2, rtol=1e-6)

  def test_without_old_scores_it_says_what_is_missing(self):
    with self.assertRaisesRegex(ValueError, "must name 'old_scores'"):
      _apply(off_policy.importance_weighted(), rollouts.make_rollout())


class RejectedTest(chex.TestCase):
  RULES = (rejection.Rule("token_ratio", 0.7, 1.4),)

  def _keep(self, rollout):
    return rejection.rejection_mask(
      rollout.extras["trainer_logprobs"],
      rollout.old_logprobs,
      _counted(rollout),
      rules=self.RULES,
    )

  def test_recounted_tokens_leave_every_count(self):
    start = _rollout()
    end = _apply(off_policy.rejected_by_rules(self.RULES), start)
    np.testing.assert_array_equal(_counted(end), self._keep(start))
    self.assertNotIn("keep", end.extras)
    weights = weighting.token_mean(end.mask, end.weights)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights.max(), 1 / self._keep(start).sum())

  def test_original_counts_stay(self):
    start = _rollout()
    end = _apply(
      off_policy.rejected_by_rules(self.RULES, denominator="original"), start
    )
    np.testing.assert_array_equal(end.mask, start.mask)
    np.testing.assert_array_equal(end.extras["keep"], self._keep(start))

  @parameterized.parameters(*off_policy.DENOMINATORS)
  def test_what_it_drops_is_logged(self, denominator):
    start = _rollout()
    end = _apply(
      off_policy.rejected_by_rules(self.RULES, denominator=denominator), start
    )
    share = 1 - self._keep(start).sum() / _counted(start).sum()
    found = end.extras["metric/rejected_tokens"]
    np.testing.assert_allclose(found, share, rtol=1e-6)
    self.assertTrue(0 < found < 1)

  def test_it_multiplies_a_selection_that_was_there(self):
    start = _rollout()
    first = jnp.where(jnp.arange(8)[None, :] == 0, 0.0, 1.0)
    first = jnp.broadcast_to(first, start.mask.shape)
    start = start.replace(extras=start.extras | {"keep": first})
    end = _apply(
      off_policy.rejected_by_rules(self.RULES, denominator="original"), start
    )
    np.testing.assert_array_equal(end.extras["keep"], self._keep(start) * first)

  def test_an_unknown_denominator_is_refused(self):
    with self.assertRaisesRegex(ValueError, "recounted, original; got 'all'"):
      off_policy.rejected_by_rules(self.RULES, denominator="all")


class SamplerRememberedTest(chex.TestCase):
  def test_it_keeps_what_came_and_what_the_step_has_kept(self):
    bare = rollouts.make_rollout()
    end = _apply(off_policy.sampler_remembered(), bare)
    chex.assert_trees_all_equal(
      end.extras["sampler_logprobs"], bare.old_logprobs
    )
    kept = _rollout().replace(old_logprobs=jnp.zeros((8, 8)))
    end = _apply(off_policy.sampler_remembered(), kept)
    chex.assert_trees_all_equal(end, kept)
