"""The bonus for unusual correct answers."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import novelty

X = jnp.array([1.0, 3.0, 9.0, 2.0, 2.0, 0.5])
RIGHT = jnp.array([True, True, False, True, True, False])


class NoveltyTest(chex.TestCase):
  def test_ranks_by_hand(self):
    found = novelty.novelty(X, RIGHT, group_size=6)
    np.testing.assert_allclose(found, [0, 1, 0, 0.5, 0.5, 0], rtol=1e-6)

  def test_deviations_and_nats_by_hand(self):
    found = novelty.novelty(X, RIGHT, group_size=6, kind="zscore")
    score = 1.0 / np.sqrt(0.5) / 3.0
    np.testing.assert_allclose(found, [0, score, 0, 0, 0, 0], atol=1e-5)
    found = novelty.novelty(X, RIGHT, group_size=6, kind="raw", most=2.5)
    np.testing.assert_allclose(found, [0.4, 1, 0, 0.8, 0.8, 0], rtol=1e-6)

  def test_the_mean_rank_of_correct_ones_is_a_half(self):
    for x in (X, jnp.zeros(6), jnp.arange(6.0)):
      found = novelty.novelty(x, RIGHT, group_size=6)
      self.assertAlmostEqual(float(found[RIGHT].mean()), 0.5, places=6)

  def test_ranks_do_not_change_under_monotone_maps(self):
    chex.assert_trees_all_equal(
      novelty.novelty(X, RIGHT, group_size=6),
      novelty.novelty(jnp.exp(X) - 7, RIGHT, group_size=6),
    )

  @parameterized.parameters(*novelty.KINDS)
  def test_is_between_0_and_1_and_of_two_correct_ones(self, kind):
    for scale in (1e-3, 1.0, 1e3):
      found = novelty.novelty(scale * X, RIGHT, group_size=6, kind=kind)
      self.assertTrue(bool(((found >= 0) & (found <= 1)).all()))
      self.assertTrue(bool((found[~RIGHT] == 0).all()))
    for right in (jnp.zeros(6, bool), jnp.arange(6) == 1):
      found = novelty.novelty(X, right, group_size=6, kind=kind)
      np.testing.assert_array_equal(found, 0.0)
    alone = novelty.novelty(X, RIGHT, group_size=1, kind=kind)
    np.testing.assert_array_equal(alone, 0.0)

  @parameterized.parameters(*novelty.KINDS)
  def test_dropped_rows_are_not_seen(self, kind):
    weights = jnp.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    found = novelty.novelty(
      X.at[1].set(jnp.nan), RIGHT, weights, group_size=6, kind=kind
    )
    right = RIGHT.at[1].set(False)
    chex.assert_trees_all_equal(
      found, novelty.novelty(X, right, group_size=6, kind=kind)
    )

  def test_perplexity_is_of_the_mask_and_that_of_nothing_is_1(self):
    logprobs = jnp.array([[-1.0, -3.0, jnp.nan], [-jnp.inf] * 3])
    mask = jnp.array([[True, True, False], [False] * 3])
    found = novelty.log_perplexity(logprobs, mask)
    np.testing.assert_allclose(found, [2.0, 0.0])


class BonusTest(chex.TestCase):
  def _rewards(self, rewards, **knobs):
    rollout = rollouts.make_rollout().replace(rewards=jnp.asarray(rewards))
    transform = novelty.novelty_bonus(**knobs)
    return transform.update(rollout, transform.init())[0]

  @parameterized.parameters(0.2, 1.0)
  def test_correct_ones_stay_above_wrong_ones(self, coef):
    rewards = np.float32([1, 0, 1, 1, 0, 1, 0, 1])
    found = np.asarray(self._rewards(rewards, coef=coef).rewards)
    self.assertGreaterEqual(found[rewards == 1].min(), 1.0)
    np.testing.assert_array_equal(found[rewards == 0], 0.0)
    self.assertAlmostEqual(found[:4].max(), 1.0 + coef, places=6)

  def test_a_solved_group_has_none_if_so_asked(self):
    rewards = np.float32([1, 1, 1, 1, 1, 1, 0, 0])
    with_it = self._rewards(rewards).rewards
    self.assertGreater(float(with_it[:4].max()), 1.1)
    without = self._rewards(rewards, on_solved=False).rewards
    np.testing.assert_array_equal(without[:4], 1.0)
    chex.assert_trees_all_equal(without[4:], with_it[4:])

  def test_its_mean_is_logged(self):
    rewards = np.float32([1, 1, 0, 0, 0, 0, 0, 0])
    found = self._rewards(rewards)
    self.assertAlmostEqual(float(found.extras["metric/novelty"]), 1 / 8)

  def test_an_unknown_kind_is_refused(self):
    with self.assertRaisesRegex(ValueError, "one of rank, zscore, raw"):
      novelty.novelty_bonus(kind="mean")
