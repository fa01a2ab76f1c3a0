"""Which tokens EKSFT leaves out, and what its terms are."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import imitation, ranks
from jaxrl_llm.testing import rollouts

N, T, V = 4, 9, 16


def _numbers(seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  entropy = jax.random.uniform(keys[0], (N, T), maxval=jnp.log(V))
  kl = jax.random.exponential(keys[1], (N, T))
  lengths = jnp.array([T, 5, 0, 7])
  return entropy, kl, jnp.arange(T)[None, :] < lengths[:, None]


def _select(ratio, seed=0, **knobs):
  entropy, kl, mask = _numbers(seed)
  count = ranks.share(ratio, mask)
  return imitation.select(entropy, kl, mask, count=count, **knobs), mask


class SelectTest(chex.TestCase):
  @parameterized.product(ratio=(0.0, 0.1, 0.25, 0.5, 1.0), seed=(0, 1))
  def test_counts_are_floors_and_drop_lies_between_k_and_2k(self, ratio, seed):
    found, mask = _select(ratio, seed)
    k = int(np.floor(ratio * 21))
    self.assertEqual(int(found.kl.sum()), k)
    self.assertEqual(int(found.entropy.sum()), k)
    self.assertBetween(int(found.drop.sum()), k, min(2 * k, 21))
    both, _ = _select(ratio, seed, combine="intersection")
    self.assertLessEqual(int(both.drop.sum()), k)
    for each in found:
      self.assertFalse(bool((each & ~mask).any()))

  def test_a_higher_ratio_never_takes_a_token_back(self):
    for combine in ("union", "intersection"):
      smaller = jnp.zeros((N, T), bool)
      for ratio in np.linspace(0, 1, 15):
        drop = _select(ratio, combine=combine)[0].drop
        self.assertTrue(bool((drop | ~smaller).all()))
        smaller = drop
      self.assertEqual(int(smaller.sum()), 21)

  def test_the_largest_are_taken_whatever_lies_on_padding(self):
    entropy, kl, mask = _numbers()
    found, _ = _select(0.3)
    least = jnp.where(found.entropy, entropy, jnp.inf).min()
    rest = jnp.where(mask & ~found.entropy, entropy, -jnp.inf).max()
    self.assertGreater(float(least), float(rest))
    for junk in (jnp.inf, jnp.nan):
      dirty = [jnp.where(mask, x, junk) for x in (entropy, kl)]
      again = imitation.select(*dirty, mask, count=ranks.share(0.3, mask))
      chex.assert_trees_all_equal(again, found)

  def test_a_policy_that_is_its_reference_has_no_largest_kl(self):
    entropy, _, mask = _numbers()
    nothing = jnp.zeros((N, T))
    found = imitation.select(entropy, nothing, mask, count=jnp.array(4))
    self.assertEqual(int(found.kl.sum()), 0)
    self.assertEqual(int(found.drop.sum()), 4)
    always = imitation.select(
      entropy, nothing, mask, count=jnp.array(4), least_kl=0.0
    )
    np.testing.assert_array_equal(
      np.flatnonzero(always.kl), np.flatnonzero(mask)[:4]
    )  # the first of equals

  def test_it_has_no_gradient(self):
    entropy, kl, mask = _numbers()

    def kept(entropy, kl):
      found = imitation.select(entropy, kl, mask, count=jnp.array(4))
      return imitation.means(~found.drop)[0].sum()

    grads = jax.grad(kept, argnums=(0, 1))(entropy, kl)
    chex.assert_trees_all_equal(grads, (jnp.zeros((N, T)),) * 2)

  def test_one_before_is_the_code_s_slip(self):
    selected = jnp.array([[1, 0, 1, 0], [0, 1, 1, 1]], bool)
    shifted = [[0, 1, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(imitation.one_before(selected), shifted)


class TermsTest(chex.TestCase):
  def test_the_entropy_of_uniform_tokens_is_one_and_of_certain_ones_zero(self):
    rollout = rollouts.make_rollout()
    (weights,) = imitation.means(rollout.mask)
    scores = rollouts.make_scores(rollout, vocab_size=V)
    for share in (0.0, 0.5, 1.0):
      flat = jnp.full(rollout.mask.shape, share * np.log(V))
      found = imitation.normalized_entropy(
        scores.replace(entropy=flat), weights
      )
      np.testing.assert_allclose(found, share, rtol=1e-6)

  def test_means_of_nothing_are_nothing(self):
    for weights in imitation.means(
      jnp.zeros((2, 3), bool), jnp.ones((2, 3), bool)
    ):
      self.assertIn(float(weights.sum().round(5)), (0.0, 1.0))

  def test_the_code_s_kl_is_of_p_where_log_p_is_meant(self):
    keys = jax.random.split(jax.random.key(1), 2)
    log_p, log_q = (
      jax.nn.log_softmax(jax.random.normal(k, (1, 1, V))) for k in keys
    )
    p = jnp.exp(log_p)
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout).replace(
      entropy=-(p * log_p).sum(-1),
      reference_kl=(p * (log_p - log_q)).sum(-1),
      collision=(p * p).sum(-1),
    )
    one = jnp.ones((1, 1))
    true = imitation.mean_kl(scores, one)
    slip = imitation.mean_kl(scores, one, probability_for_logprob=True)
    np.testing.assert_allclose(true, (p * (log_p - log_q)).sum(), rtol=1e-5)
    np.testing.assert_allclose(slip, (p * (p - log_q)).sum(), rtol=1e-5)
    self.assertGreaterEqual(float(true), 0.0)

  @parameterized.parameters(
    (0.4, 1.0, 1.05, 0.95), (0.5, 2.0, 0.95, 0.95), (0.6, 2.1, 0.95, 1.05)
  )
  def test_coefficients_follow_their_measurements(self, e, r, up_h, up_k):
    found = imitation.adjusted(2.0, 4.0, jnp.array(e), jnp.array(r))
    np.testing.assert_allclose(found, (2.0 * up_h, 4.0 * up_k), rtol=1e-6)


class RanksTest(chex.TestCase):
  @parameterized.parameters(
    (0.2, 20, 4), (0.3, 10, 3), (0.5, 3, 1), (1.0, 7, 7)
  )
  def test_a_share_is_a_floor(self, fraction, tokens, count):
    mask = jnp.arange(30).reshape(5, 6) < tokens
    self.assertEqual(int(ranks.share(fraction, mask)), count)
