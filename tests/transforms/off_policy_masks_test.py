"""M2PO, OPSM and the total-variation mask."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import off_policy_masks

MASK = jnp.array([[True, True, True], [True, True, False]])
OLD = jnp.full((2, 3), -1.0)


def _random(scale=0.5):
  rollout = rollouts.make_rollout(length=8)
  noise = jax.random.normal(jax.random.key(3), rollout.mask.shape)
  return (
    rollout.old_logprobs,
    rollout.old_logprobs + scale * noise,
    (rollout.mask),
  )


class SecondMomentMaskTest(chex.TestCase):
  def _keep(self, *pair, threshold=0.04):
    return np.asarray(
      off_policy_masks.second_moment_mask(*pair, threshold=threshold)
    )

  def test_equal_policies_lose_nothing(self):
    old, _, mask = _random()
    np.testing.assert_array_equal(self._keep(old, old, mask), mask)

  def test_what_is_left_is_below_and_one_more_would_not_be(self):
    old, sampled, mask = _random()
    keep = self._keep(old, sampled, mask)
    moment = np.asarray((old - sampled) ** 2)
    left, gone = moment[keep], moment[np.asarray(mask) & ~keep]
    self.assertGreater(gone.size, 2)
    self.assertLess(left.mean(), 0.04)
    self.assertGreaterEqual(gone.min(), left.max())
    self.assertGreaterEqual(np.append(left, gone.min()).mean(), 0.04)

  def test_an_example_for_the_eye(self):
    gaps = jnp.array([[0.1, 0.3, 0.2], [1.0, 0.2, 9.0]])
    keep = self._keep(OLD, OLD - gaps, MASK, threshold=0.05)
    # Means of 0.01, 0.04, 0.04, 0.09, 1 as they are added: ... 0.045, 0.236.
    np.testing.assert_array_equal(keep, [[1, 1, 1], [0, 1, 0]])

  def test_one_token_stays_whatever_its_moment(self):
    gaps = jnp.array([[3.0, 2.0, 4.0], [5.0, 6.0, 0.0]])
    keep = self._keep(OLD, OLD - gaps, MASK)
    np.testing.assert_array_equal(keep, [[0, 1, 0], [0, 0, 0]])

  def test_padding_is_never_kept_nor_read(self):
    old, sampled, mask = _random()
    clean = self._keep(old, sampled, mask)
    dirty = self._keep(old, jnp.where(mask, sampled, jnp.nan), mask)
    np.testing.assert_array_equal(clean, dirty)
    self.assertFalse(self._keep(old, sampled, jnp.zeros_like(mask)).any())

  def test_jit_changes_nothing(self):
    mask_of = off_policy_masks.second_moment_mask
    np.testing.assert_array_equal(
      mask_of(*_random()), jax.jit(mask_of)(*_random())
    )

  def test_a_threshold_of_zero_is_refused(self):
    with self.assertRaisesRegex(ValueError, "positive, got 0"):
      self._keep(*_random(), threshold=0.0)


class OffPolicySequenceMaskTest(chex.TestCase):
  def _keep(self, now, sampled, advantages, delta=0.1, mask=MASK):
    return np.asarray(
      off_policy_masks.off_policy_sequence_mask(
        now, sampled, advantages, mask, delta=delta
      )
    )

  def test_only_failures_that_the_policy_has_left_are_dropped(self):
    for advantage, gap, dropped in (
      (-1.0, 0.2, True),
      (-1.0, 0.05, False),  # still near
      (-1.0, -0.2, False),  # now likelier than when it was sampled
      (1.0, 0.2, False),
      (0.0, 0.2, False),
    ):
      advantages = jnp.full((2, 3), advantage)
      keep = self._keep(OLD, OLD + gap, advantages)
      self.assertEqual(keep[np.asarray(MASK)].any(), not dropped)

  def test_the_mean_is_over_the_tokens_of_the_row(self):
    sampled = OLD.at[1].set(jnp.array([-0.9, -0.7, 50.0]))
    advantages = -jnp.ones((2, 3))
    self.assertTrue(self._keep(OLD, sampled, advantages, delta=0.21).all())
    keep = self._keep(OLD, sampled, advantages, delta=0.19)
    np.testing.assert_array_equal(keep[:, :2], [[1, 1], [0, 0]])

  def test_credit_of_tokens_drops_tokens(self):
    advantages = jnp.array([[-1.0, 1.0, -1.0], [1.0, -1.0, jnp.nan]])
    keep = self._keep(OLD, OLD + 1.0, advantages)
    np.testing.assert_array_equal(keep, [[0, 1, 0], [1, 0, 1]])

  def test_padding_and_empty_rows_are_kept(self):
    junk = jnp.where(MASK, OLD, jnp.nan)
    keep = self._keep(junk, OLD, -jnp.ones((2, 3)), mask=MASK)
    self.assertTrue(keep.all())
    empty = jnp.zeros_like(MASK)
    self.assertTrue(self._keep(junk, OLD + 9, -OLD, mask=empty).all())

  def test_no_gradient_goes_through(self):
    count = lambda now: off_policy_masks.off_policy_sequence_mask(
      now, OLD + 1.0, OLD, MASK, delta=0.1
    ).astype(now.dtype)
    grad = jax.grad(lambda now: (count(now) * 2.0).sum())(OLD)
    np.testing.assert_array_equal(grad, 0.0)

  def test_a_negative_delta_is_refused(self):
    with self.assertRaisesRegex(ValueError, "got -1"):
      self._keep(OLD, OLD, OLD, delta=-1.0)


class TotalVariationMaskTest(chex.TestCase):
  def _keep(self, old, sampled, advantages, mask=MASK, **bounds):
    return np.asarray(
      off_policy_masks.total_variation_mask(
        old, sampled, advantages, mask, **bounds
      )
    )

  def test_equal_policies_lose_nothing(self):
    old, _, mask = _random()
    keep = self._keep(old, old, jnp.ones_like(old), mask=mask)
    np.testing.assert_array_equal(keep, mask)

  def test_only_steps_that_widen_the_gap_are_dropped(self):
    sampled = OLD - jnp.array([[0.5, -0.5, 0.5], [0.5, -0.5, 0.0]])
    advantages = jnp.array([[1.0, 1.0, -1.0], [-1.0, -1.0, 0.0]])
    keep = self._keep(OLD, sampled, advantages)
    np.testing.assert_array_equal(keep, [[0, 1, 1], [1, 0, 0]])

  def test_rows_within_bounds_are_left_alone(self):
    sampled = OLD - jnp.array([[0.05, 0.05, 0.05], [0.5, 0.5, 0.5]])
    advantages = jnp.ones((2, 3))
    keep = self._keep(OLD, sampled, advantages)
    np.testing.assert_array_equal(keep, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(
      self._keep(OLD, sampled, advantages, high=0.0), MASK
    )
    keep = self._keep(OLD, sampled, advantages, low=0.1, high=0.0)
    np.testing.assert_array_equal(keep, [[0, 0, 0], [1, 1, 0]])
