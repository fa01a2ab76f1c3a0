"""Advantages made of advantages: what they keep, what they reduce to."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group, reshaping


def _binary(*counts, size=4):
  """Groups with so many ones each."""
  rows = [[1.0] * k + [0.0] * (size - k) for k in counts]
  return jnp.array(rows).reshape(-1)


def _grpo(rewards, weights=None, size=4):
  return group.group_normalized(
    rewards, weights, group_size=size, ddof=0, eps=1e-9
  )


def _a_grae(rewards, weights=None, *, size=4, **knobs):
  plain = _grpo(rewards, weights, size)
  return reshaping.difficulty_reshaped(
    plain, rewards, weights, group_size=size, **knobs
  )


class DifficultyTest(chex.TestCase):
  @parameterized.product(
    counts=((1, 2, 3), (1, 1, 0), (3, 4, 3)), easy_factor=("paper", "code")
  )
  def test_signs_stay(self, counts, easy_factor):
    rewards = _binary(*counts)
    for alpha in (0.3, 1.0):
      actual = _a_grae(rewards, alpha=alpha, easy_factor=easy_factor)
      np.testing.assert_array_equal(jnp.sign(actual), jnp.sign(_grpo(rewards)))

  def test_without_damping_a_group_sums_to_zero(self):
    actual = _a_grae(_binary(1, 3, 4), alpha=0.6)  # omega is 2 / 3
    sums = actual.reshape(-1, 4).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-6)

  def test_of_a_weak_policy_mixed_groups_sum_to_less(self):
    actual = _a_grae(_binary(1, 1, 0), alpha=0.5).reshape(-1, 4)
    sums = actual.sum(axis=1)
    self.assertTrue(bool((sums[:2] < -0.1).all()), sums)
    positive = _a_grae(_binary(1, 1, 0), alpha=1 / 6).reshape(-1, 4)
    np.testing.assert_allclose(actual[:2, 0], positive[:2, 0] / 3, rtol=1e-5)
    np.testing.assert_allclose(actual[:, 1:], positive[:, 1:], rtol=1e-6)

  @parameterized.parameters(0, 3, 8)
  def test_at_one_half_the_factor_is_the_same_for_any_omega(self, others):
    rewards = _binary(4, others, others, size=8)
    ratio = _a_grae(rewards, size=8, alpha=1e-6) / _grpo(rewards, size=8)
    np.testing.assert_allclose(ratio[:8], 0.5**0.5, rtol=1e-5)

  def test_the_sum_over_a_group_is_for_hard_prompts_when_omega_is_1(self):
    rates = jnp.array([1, 2, 3, 4, 5, 6, 7])
    rewards = _binary(*rates.tolist(), size=8)
    plain = _grpo(rewards, size=8)
    p = rates / 8
    for omega, left in ((1.0, jnp.sqrt(1 - p)), (0.0, jnp.sqrt(p))):
      # The mean of all rewards is moved by a huge group beside these.
      fill = jnp.full(8 * 10**4, omega)
      actual = reshaping.difficulty_reshaped(
        jnp.concatenate([plain, 0 * fill]),
        jnp.concatenate([rewards, fill]),
        group_size=8,
        alpha=1e-9,
      )[:56]
      sums = jnp.abs(actual).reshape(-1, 8).sum(axis=1)
      np.testing.assert_allclose(sums / sums[3], left / left[3], rtol=3e-3)

  def test_the_code_has_another_factor_for_easy_prompts(self):
    rewards = _binary(3, 0, 0, 0, 0, 0)  # p = 3/4, omega = 1/8
    paper, code = (
      _a_grae(rewards, alpha=0.1, easy_factor=name) / _grpo(rewards)
      for name in ("paper", "code")
    )
    root = 0.75**0.5
    hard = 0.125 / (2 * root)
    np.testing.assert_allclose(paper[0], hard + 0.875 / 2 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(
      code[0], hard + 0.875 / 2 / (1 - root), rtol=1e-4
    )

  @parameterized.parameters("paper", "code")
  def test_all_right_and_all_wrong_get_exactly_zero(self, easy_factor):
    actual = _a_grae(_binary(0, 4, 2), easy_factor=easy_factor)
    np.testing.assert_array_equal(actual[:8], 0.0)
    nothing = _a_grae(_binary(0, 0), easy_factor=easy_factor)
    np.testing.assert_array_equal(nothing, 0.0)

  def test_success_may_be_a_threshold(self):
    graded = jnp.array([0.9, 0.8, 0.2, 0.1, 0.7, 0.3, 0.2, 0.1])
    binary = (graded >= 0.75).astype(jnp.float32)
    plain = _grpo(graded)
    np.testing.assert_allclose(
      reshaping.difficulty_reshaped(plain, graded, group_size=4, success=0.75),
      reshaping.difficulty_reshaped(plain, binary, group_size=4),
      rtol=1e-6,
    )

  def test_dropped_rows_are_not_seen(self):
    rewards, weights = _binary(1, 2, 3), jnp.ones(12).at[5].set(0.0)
    seen = [_a_grae(rewards.at[5].set(x), weights) for x in (0.0, 1.0, jnp.nan)]
    chex.assert_trees_all_equal(*seen)
    chex.assert_tree_all_finite(seen)


class HystereticTest(chex.TestCase):
  def test_alpha_1_changes_nothing_and_0_keeps_successes_alone(self):
    credit = _grpo(_binary(1, 2, 4))
    np.testing.assert_array_equal(
      reshaping.hysteretic(credit, alpha=1.0), credit
    )
    np.testing.assert_array_equal(
      reshaping.hysteretic(credit, alpha=0.0), jnp.maximum(credit, 0.0)
    )

  def test_below_1_groups_sum_to_more_than_zero(self):
    actual = reshaping.hysteretic(_grpo(_binary(1, 2, 3, 0)), alpha=0.6)
    sums = actual.reshape(-1, 4).sum(axis=1)
    self.assertTrue(bool((sums[:3] > 0.1).all()))
    self.assertEqual(float(sums[3]), 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_adaptive_alpha_is_successes_over_failures(self):
    fn = self.variant(reshaping.positive_per_negative)
    for counts, expected in (
      ((1, 0, 0), 1 / 3),
      ((3, 0), 1.0),  # more successes than failures: GRPO
      ((0, 4), 1.0),  # nothing has a sign
      ((1, 2), 3 / 5),
    ):
      alpha = fn(_grpo(_binary(*counts)))
      self.assertAlmostEqual(float(alpha), expected, places=6)
    self.assertAlmostEqual(float(fn(-jnp.ones(4))), 0.1, places=6)

  def test_adaptive_alpha_never_falls_with_more_successes(self):
    found = [
      float(
        reshaping.positive_per_negative(
          jnp.array([1.0] * k + [0.0] * (8 - k) + [-1.0] * 8)
        )
      )
      for k in range(9)
    ]
    self.assertEqual(found, sorted(found))
    self.assertLessEqual(max(found), 1.0)

  def test_the_order_of_completions_does_not_matter(self):
    credit = jax.random.normal(jax.random.key(1), (12,))
    shuffled = jax.random.permutation(jax.random.key(2), credit)
    alpha = reshaping.positive_per_negative(credit)
    self.assertEqual(
      float(alpha), float(reshaping.positive_per_negative(shuffled))
    )

  def test_dropped_rows_have_no_sign(self):
    credit = jnp.array([1.0, -1.0, -1.0, -1.0])
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    alpha = reshaping.positive_per_negative(credit, weights)
    self.assertAlmostEqual(float(alpha), 0.5, places=6)


CREDIT = jnp.array([0.9, 0.9, -0.9, 0.9, 0.5, 0.5, -0.2, 0.5])
PLACES = jnp.array([10.0, 30.0, 5.0, 20.0, 7.0, 7.0, 2.0, 0.0])
LENGTHS = jnp.array([100.0, 80.0, 50.0, 60.0, 90.0, 40.0, 20.0, 30.0])
ELIGIBLE = jnp.array([1, 1, 0, 1, 1, 1, 1, 0]) > 0


def _aspo(delta=-2.0, k=0.7, places=PLACES, lengths=LENGTHS, rows=ELIGIBLE):
  return reshaping.position_shaped(
    CREDIT, places, lengths, rows, group_size=4, delta=delta, k=k
  )


class PositionTest(chex.TestCase):
  @parameterized.parameters((-2.0, 0.0), (0.0, 0.7))
  def test_without_delta_or_k_nothing_changes(self, delta, k):
    np.testing.assert_array_equal(_aspo(delta, k), CREDIT)

  @parameterized.parameters(0.3, 0.7, 0.99)
  def test_no_credit_changes_its_sign_or_leaves_its_band(self, k):
    ratio = _aspo(delta=-500.0, k=k) / CREDIT
    self.assertLessEqual(float(ratio.max()), 1 + k + 1e-6)
    self.assertGreaterEqual(float(ratio.min()), 1 - k - 1e-6)
    self.assertAlmostEqual(float(ratio.max()), 1 + k, places=5)

  def test_before_the_clip_bonuses_of_a_group_sum_to_zero(self):
    bonus = (_aspo(delta=-0.2) - CREDIT).reshape(-1, 4)
    np.testing.assert_allclose(bonus.sum(axis=1), 0.0, atol=1e-6)
    self.assertGreater(float(jnp.abs(bonus).max()), 0.01)

  def test_earlier_is_better(self):
    bonus = _aspo(delta=-0.2) - CREDIT
    order = jnp.argsort(PLACES[jnp.array([0, 1, 3])])
    self.assertTrue(
      bool((jnp.diff(bonus[jnp.array([0, 1, 3])][order]) < 0).all())
    )

  def test_the_others_keep_theirs(self):
    np.testing.assert_array_equal(_aspo()[~ELIGIBLE], CREDIT[~ELIGIBLE])

  def test_one_scale_of_positions_and_lengths_does_not_matter(self):
    scaled = _aspo(places=7 * PLACES, lengths=7 * LENGTHS)
    np.testing.assert_allclose(scaled, _aspo(), rtol=1e-6)

  def test_one_alone_and_none_get_no_bonus(self):
    for rows in (jnp.arange(8) == 1, jnp.zeros(8, bool)):
      np.testing.assert_array_equal(_aspo(rows=rows), CREDIT)

  def test_a_group_of_one_gets_no_bonus(self):
    actual = reshaping.position_shaped(
      CREDIT, PLACES, LENGTHS, ELIGIBLE, group_size=1
    )
    np.testing.assert_array_equal(actual, CREDIT)

  def test_credit_of_zero_stays(self):
    zero = jnp.zeros(8)
    actual = reshaping.position_shaped(
      zero, PLACES, LENGTHS, ELIGIBLE, group_size=4
    )
    np.testing.assert_array_equal(actual, zero)
