"""Credit of segments."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.advantages import segments

ENDS = jnp.array([[1, 0, 1, 0, 2, 0], [0, 2, 0, 0, 0, 0]])
MASK = jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]], bool)
VALUES = np.array([[0.5, 0.75, 0.75, 0.2, 0.2], [0.3, 0.3, 0, 0, 0]])
DELTAS = jnp.array([[0.25, 0, -0.55, 0, -0.2, 0], [0, -0.3, 0, 0, 0, 0]])
REWARDS = jnp.array([1.0, 0.25])


class SegmentAdvantagesTest(chex.TestCase):
  def _estimate(self, lam, **changes):
    arrays = {"ends": ENDS, "deltas": DELTAS, "mask": MASK} | changes
    estimate = self.variant(segments.segment_advantages, static_argnames="lam")
    return np.asarray(estimate(REWARDS, **arrays, lam=lam))

  @chex.variants(with_jit=True, without_jit=True)
  def test_with_lambda_1_it_is_the_reward_less_the_value(self):
    expected = np.where(MASK[:, :5], REWARDS[:, None] - VALUES, 0.0)
    np.testing.assert_allclose(
      self._estimate(1.0)[:, :5], expected, rtol=1e-6, atol=1e-7
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_with_lambda_0_it_is_the_own_difference(self):
    np.testing.assert_allclose(
      self._estimate(0.0)[0], [0.25, -0.55, -0.55, 0.8, 0.8, 0], rtol=1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_between_them_it_fades_by_segments_not_by_tokens(self):
    last, middle = 0.8, -0.55 + 0.5 * 0.8
    np.testing.assert_allclose(
      self._estimate(0.5)[0],
      [0.25 + 0.5 * middle, middle, middle, last, last, 0],
      rtol=1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_is_masked_may_hold_anything(self):
    dirty = self._estimate(
      0.5,
      ends=jnp.where(MASK, ENDS, 2),
      deltas=jnp.where(MASK, DELTAS, jnp.nan),
    )
    np.testing.assert_array_equal(dirty, self._estimate(0.5))

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_hole_takes_no_part(self):
    hole = np.arange(6)[None] == 3
    ends = jnp.where(hole, 0, ENDS)
    found = self._estimate(0.5, mask=MASK & ~hole, ends=ends)
    whole = self._estimate(0.5)
    np.testing.assert_array_equal(found, np.where(hole, 0.0, whole))

  @chex.variants(with_jit=True, without_jit=True)
  def test_without_a_last_segment_there_is_no_reward(self):
    found = self._estimate(1.0, ends=jnp.minimum(ENDS, 1))
    np.testing.assert_allclose(found[0, 3], -0.2, rtol=1e-6)

  @parameterized.parameters(-0.1, 1.5)
  def test_lambda_is_checked(self, lam):
    with pytest.raises(ValueError, match=r"lam must be in \[0, 1\]"):
      segments.segment_advantages(REWARDS, ENDS, DELTAS, MASK, lam=lam)
