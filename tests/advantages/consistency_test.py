"""Credit between prompts and what decides how much of it there is."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import consistency, group

ANSWERS = jnp.array([0, 0, 1, 2, 0, 1, 2, 3, 5, 5, 5, 5])
REWARDS = jnp.array([1.0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])


def _entropy(answers=ANSWERS, weights=None, size=4):
  return consistency.answer_entropy(answers, weights, group_size=size)


class EntropyTest(chex.TestCase):
  def test_by_hand(self):
    found = _entropy().reshape(3, 4)
    for row, bits in zip(found, (1.5, 2.0, 0.0), strict=True):
      np.testing.assert_allclose(row, bits, atol=1e-6)

  def test_names_of_answers_do_not_matter(self):
    chex.assert_trees_all_equal(_entropy(), _entropy(10 - 3 * ANSWERS))

  def test_of_one_row_it_is_0(self):
    np.testing.assert_array_equal(_entropy(size=1), 0.0)

  def test_a_dropped_row_makes_the_group_smaller(self):
    weights = jnp.array([1.0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    found = _entropy(weights=weights)[::4]
    three = -(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3))
    np.testing.assert_allclose(found, [three, np.log2(3), 0.0], rtol=1e-5)


class PromptRewardsTest(chex.TestCase):
  def _earned(self, rewards, **knobs):
    return consistency.prompt_rewards(
      rewards, _entropy(), group_size=4, **knobs
    )[::4]

  def test_is_the_mean_or_less_where_answers_differ(self):
    np.testing.assert_allclose(self._earned(REWARDS), [0.5, 0.0, 1.0])
    found = self._earned(REWARDS, consistency=True)
    np.testing.assert_allclose(found, [0.21875, 0.0, 1.0], rtol=1e-5)

  def test_of_as_many_answers_as_rows_a_share_is_left(self):
    found = self._earned(jnp.ones(12), consistency=True)
    np.testing.assert_allclose(found[1], 1 / 4, rtol=1e-5)
    mean = self._earned(jnp.ones(12))
    self.assertTrue(bool(((found <= mean + 1e-6) & (found >= mean / 4)).all()))

  def test_of_one_row_it_is_the_reward(self):
    found = consistency.prompt_rewards(
      REWARDS, _entropy(size=1), group_size=1, consistency=True
    )
    chex.assert_trees_all_equal(found, REWARDS)


class BetweenTest(chex.TestCase):
  def _between(self, rewards, weights=None, **knobs):
    earned = consistency.prompt_rewards(
      rewards, _entropy(), weights, group_size=4
    )
    return consistency.between_prompts(earned, weights, group_size=4, **knobs)

  def test_sums_to_zero_over_the_batch(self):
    found = self._between(REWARDS)
    np.testing.assert_allclose(found[::4], [0.0, -1.0, 1.0], atol=1e-5)
    self.assertAlmostEqual(float(found.sum()), 0.0, places=5)
    centred = self._between(REWARDS, normalize=False)
    np.testing.assert_allclose(centred[::4], [0.0, -0.5, 0.5], atol=1e-6)

  def test_equal_prompts_and_a_single_one_give_exactly_zero(self):
    for constant in (0.9, -3.3, 1000.7):
      weights = jnp.ones(12).at[1].set(0.0)  # means over 3 and over 4 rows
      found = self._between(jnp.full(12, constant), weights)
      np.testing.assert_array_equal(found, 0.0)
    alone = consistency.between_prompts(REWARDS[:4], group_size=4)
    np.testing.assert_array_equal(alone, 0.0)

  def test_a_prompt_without_rows_is_not_seen(self):
    weights = jnp.where(jnp.arange(12) < 8, 1.0, 0.0)
    found = self._between(REWARDS, weights)
    side = 0.5 / (np.sqrt(0.125) + 1e-6) / 2
    np.testing.assert_allclose(found[:8:4], [side, -side], rtol=1e-5)
    np.testing.assert_array_equal(found[8:], 0.0)


class WithinTest(chex.TestCase):
  def test_is_grpo_and_of_one_row_the_reward(self):
    chex.assert_trees_all_equal(
      consistency.within_prompt(REWARDS, group_size=4),
      group.group_normalized(REWARDS, group_size=4, eps=1e-6),
    )
    chex.assert_trees_all_equal(
      consistency.within_prompt(REWARDS, group_size=4, normalize=False),
      group.group_centred(REWARDS, group_size=4),
    )
    alone = consistency.within_prompt(REWARDS, group_size=1)
    np.testing.assert_allclose(alone, REWARDS / (1 + 1e-6))


class ShareTest(chex.TestCase):
  H = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.0])
  R = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
  LOCAL = jnp.array([0.0, 1.0, -1.0, 1.0, -1.0, 0.0])

  def _share(self, blend):
    return consistency.local_share(self.H, self.R, self.LOCAL, blend=blend)

  def test_rises_with_the_entropy_between_0_and_1(self):
    found = self._share("only_soft")
    self.assertTrue(bool((jnp.diff(found[:5]) > 0).all()))
    self.assertTrue(bool(((found > 0) & (found < 1)).all()))
    np.testing.assert_allclose(found[:3], [0.006693, 0.07586, 0.5], rtol=1e-3)

  @parameterized.parameters(
    ("only_global", [0, 0, 0, 0, 0, 0]),
    ("no_global", [1, 1, 1, 1, 1, 1]),
    ("only_zero", [1, 1, 0, 1, 0, 1]),
    ("only_forced", [0, 1, 1, 1, 1, 0]),
  )
  def test_what_is_all_or_nothing(self, blend, expected):
    np.testing.assert_array_equal(self._share(blend), expected)

  def test_products(self):
    soft = self._share("only_soft")
    for name in ("zero", "forced"):
      chex.assert_trees_all_equal(
        self._share(f"soft_with_{name}"), soft * self._share(f"only_{name}")
      )

  def test_an_unknown_blend_is_refused(self):
    with self.assertRaisesRegex(ValueError, "one of soft_with_zero"):
      self._share("hard")
