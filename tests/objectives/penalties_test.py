"""Terms of the loss: masks, extremes, what is missing; kl_test has the rest."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.objectives import kl, penalties, ratios
from jaxrl_llm.testing import rollouts

each_kl = parameterized.parameters(*penalties.REFERENCE_KL)


def _value_and_grad(term, scores, rollout):
  def total(scores):
    values = term(scores, rollout)
    return values.sum(), values

  (_, values), grads = jax.value_and_grad(total, has_aux=True)(scores)
  return values, grads.logprobs


class ReferenceKlTest(chex.TestCase):
  @each_kl
  def test_padding_is_not_read(self, name):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    term = penalties.REFERENCE_KL[name]
    clean = _value_and_grad(term, scores, rollout)
    np.testing.assert_array_equal(clean[0][~rollout.mask], 0.0)
    for junk in (jnp.inf, -jnp.inf, jnp.nan):
      spoil = lambda x: jnp.where(rollout.mask, x, junk)  # noqa: B023, E731
      dirty = _value_and_grad(
        term,
        scores.replace(logprobs=spoil(scores.logprobs)),
        rollout.replace(
          old_logprobs=spoil(rollout.old_logprobs),
          ref_logprobs=spoil(rollout.ref_logprobs),
        ),
      )
      chex.assert_trees_all_equal(clean, dirty)

  @each_kl
  def test_nothing_where_policy_and_reference_agree(self, name):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    rollout = rollout.replace(ref_logprobs=scores.logprobs)
    values, grads = _value_and_grad(
      penalties.REFERENCE_KL[name], scores, rollout
    )
    np.testing.assert_array_equal(values, 0.0)
    if name != "k1" and name != "ratio_k1":
      chex.assert_trees_all_close(grads, jnp.zeros_like(grads), atol=1e-6)

  @parameterized.parameters(-200.0, -50.0, 50.0, 200.0)
  def test_the_exact_gradient_far_away_is_the_distance(self, d):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    rollout = rollout.replace(ref_logprobs=scores.logprobs - d)
    _, grads = _value_and_grad(penalties.reference_kl, scores, rollout)
    expected = jnp.where(rollout.mask, d, 0.0)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5)

  def test_a_ratio_of_the_row_reaches_every_token_of_the_row(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    term = penalties.weighed(kl.k3, ratio=ratios.sequence_log_ratio)
    d = penalties.log_ratio_to_reference(scores, rollout)
    gap = ratios.sequence_log_ratio(
      scores.logprobs, rollout.old_logprobs, rollout.mask
    )
    values, grads = _value_and_grad(term, scores, rollout)
    chex.assert_trees_all_close(values, jnp.exp(gap) * kl.k3(d))
    # d(r k3_t) = r (k3'_t + mean_s k3_s), summed over t
    count = rollout.mask.sum(axis=1, keepdims=True)
    mean = values.sum(axis=1, keepdims=True) / count
    expected = jnp.exp(gap) * -jnp.expm1(-d) + mean
    chex.assert_trees_all_close(
      grads, jnp.where(rollout.mask, expected, 0.0), atol=1e-6
    )

  @each_kl
  def test_jit_changes_nothing(self, name):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    run = lambda s, r: _value_and_grad(  # noqa: E731
      penalties.REFERENCE_KL[name], s, r
    )
    chex.assert_trees_all_close(
      run(scores, rollout), jax.jit(run)(scores, rollout), rtol=1e-5, atol=1e-6
    )


class OtherTest(chex.TestCase):
  def test_negative_entropy_is_masked(self):
    rollout = rollouts.make_rollout()
    entropy = jnp.where(rollout.mask, 1.5, jnp.nan)
    scores = types.Scores(logprobs=rollout.old_logprobs, entropy=entropy)
    actual = penalties.negative_entropy(scores, rollout)
    np.testing.assert_array_equal(actual, jnp.where(rollout.mask, -1.5, 0.0))

  def test_what_is_missing_is_named(self):
    rollout = rollouts.make_rollout().replace(ref_logprobs=None)
    scores = types.Scores(logprobs=rollout.old_logprobs)
    with self.assertRaisesRegex(ValueError, "'ref_logprobs' in `needs`"):
      penalties.reference_kl(scores, rollout)
    with self.assertRaisesRegex(ValueError, "'entropy' in `needs`"):
      penalties.negative_entropy(scores, rollout)
