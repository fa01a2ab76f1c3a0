"""GCPO: the weights of tokens, and the credit that they share."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import contrast
from jaxrl_llm.testing import contract, rollouts

KAPPA = np.log(0.2) / np.log(0.6) - 1


def _values(rows=5, length=9):
  mask = jnp.arange(length)[None] < jnp.array([9, 5, 2, 1, 0])[:rows, None]
  values = jax.random.exponential(jax.random.key(0), mask.shape)
  return jnp.where(mask, values, jnp.nan), mask


class WeightsTest(chex.TestCase):
  def test_kappa_is_that_of_the_paper(self):
    self.assertAlmostEqual(contrast.concentration(), KAPPA)
    self.assertEqual(contrast.concentration(top=0.3, mass=0.3), 0.0)

  def test_the_top_tokens_have_the_mass(self):
    values = jax.random.uniform(jax.random.key(0), (1, 2000))
    found = contrast.rank_weights(
      values, jnp.ones_like(values, bool), kappa=contrast.concentration()
    )
    share = np.sort(np.asarray(found[0]))[-800:].sum() / 2000
    self.assertAlmostEqual(float(share), 0.8, places=3)

  @parameterized.parameters("rank", "order", "linear")
  def test_they_sum_to_the_tokens_of_a_row_and_rise_with_the_value(self, form):
    values, mask = _values()
    found = np.asarray(_weights(form, values, mask))
    np.testing.assert_allclose(found.sum(axis=1), mask.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found[~np.asarray(mask)], 0.0)
    np.testing.assert_allclose(found[3, 0], 1.0, rtol=1e-6)
    order = np.argsort(np.asarray(values[0]))
    self.assertTrue((np.diff(found[0][order]) > 0).all())

  def test_ranks_see_no_monotone_map(self):
    values, mask = _values()
    found = _weights("rank", values, mask)
    np.testing.assert_array_equal(
      found, _weights("rank", jnp.log(values), mask)
    )
    np.testing.assert_array_equal(
      found, _weights("rank", 10.0 * values**3, mask)
    )

  @parameterized.parameters("rank", "linear")
  def test_equal_values_have_equal_weights(self, form):
    _, mask = _values()
    found = _weights(form, jnp.zeros(mask.shape), mask)
    np.testing.assert_allclose(found, mask, rtol=1e-6)

  def test_equal_values_share_their_mean_rank(self):
    values, mask = jnp.array([[3.0, 1.0, 3.0, 2.0]]), jnp.ones((1, 4), bool)
    found = np.asarray(_weights("rank", values, mask))[0]
    ranks = np.array([3.5, 1.0, 3.5, 2.0]) ** KAPPA
    np.testing.assert_allclose(found, 4 * ranks / ranks.sum(), rtol=1e-5)
    ranks = np.array([3.0, 1.0, 4.0, 2.0]) ** KAPPA
    np.testing.assert_allclose(
      _weights("order", values, mask)[0], 4 * ranks / ranks.sum(), rtol=1e-5
    )

  def test_the_divergence_is_not_negative_and_bounded(self):
    new = jnp.array([[-1.0, -1.0, -1.0, -50.0, -1.0]])
    other = jnp.array([[-1.0, -1.0 + 1e-6, -60.0, -1.0, -1.5]])
    found = np.asarray(contrast.contrast(new, other))[0]
    self.assertEqual(found[0], 0.0)
    self.assertTrue((found >= 0).all())
    np.testing.assert_allclose(found[2:4], 10.0)  # both are beyond 20 nats
    np.testing.assert_allclose(found[4], np.exp(-0.5) - 0.5, rtol=1e-5)


def _weights(form, values, mask):
  if form == "linear":
    return contrast.linear_weights(values, mask)
  ties = "mean" if form == "rank" else "order"
  return contrast.rank_weights(values, mask, kappa=KAPPA, ties=ties)


class GcpoTest(chex.TestCase):
  def _credit(self, config, rollout):
    _, rollout = contract._only_needed(
      config.build(), rollouts.make_scores(rollout), rollout
    )
    return np.asarray(config.build().advantage(rollout))

  @parameterized.parameters("rank", "linear")
  def test_the_mean_credit_of_a_row_is_grpos(self, weights):
    rollout = rollouts.make_rollout()
    ours = self._credit(methods.Gcpo(weights=weights), rollout).sum(axis=1)
    plain = methods.Grpo(beta=0.0, eps=1e-6).build().advantage(rollout)
    np.testing.assert_allclose(
      ours, plain * rollout.mask.sum(axis=1), rtol=1e-5, atol=1e-6
    )

  def test_with_kappa_0_it_is_grpo_with_its_loss(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    config = methods.Gcpo(top=0.5, mass=0.5, entropy_penalty=0.0)
    ours = contract.evaluate(config.build(), scores, rollout)[2]
    dapo = methods.Dapo(eps=1e-6, filter_groups=False)  # never beyond 3
    theirs = contract.evaluate(dapo.build(), scores, rollout)[2]
    chex.assert_trees_all_close(ours.logprobs, theirs.logprobs, rtol=1e-5)

  def test_groups_of_equal_right_or_wrong_are_dropped(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(rewards=rollout.rewards.at[4:].set(1.0))
    grads = contract.evaluate(
      methods.Gcpo().build(), rollouts.make_scores(rollout), rollout
    )[2].logprobs
    np.testing.assert_array_equal(grads[4:], 0.0)
    self.assertGreater(float(jnp.abs(grads[:4]).max()), 0.0)

  def test_the_penalty_is_on_the_mean_log_prob(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    with_it, without = (
      contract.evaluate(
        methods.Gcpo(entropy_penalty=coef).build(), scores, rollout
      )
      for coef in (0.02, 0.0)
    )
    mask = rollout.mask
    mean = -jnp.where(mask, scores.logprobs, 0.0).sum() / mask.sum()
    np.testing.assert_allclose(with_it[0] - without[0], 0.02 * mean, rtol=1e-4)
    np.testing.assert_allclose(
      with_it[2].logprobs - without[2].logprobs,
      -0.02 * mask / mask.sum(),
      atol=1e-6,
    )
