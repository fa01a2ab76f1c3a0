"""Decoupled rewards, and positions compared with their siblings'."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.advantages import group, positions

G, N, T = 4, 8, 6
LENGTHS = np.array([6, 3, 5, 2, 4, 6, 1, 5])
MASK = jnp.asarray(np.arange(T)[None] < LENGTHS[:, None])
NONE = jnp.full(N, -1)
REWARDS = jnp.array([1.0, 1, 0, 1, 1, 1, 1, 1])


class DecoupledRewardsTest(chex.TestCase):
  def _rewards(self, starts=NONE, ends=NONE, **knobs):
    estimate = self.variant(
      positions.decoupled_rewards,
      static_argnames=("beta_len", "max_length", "redundant_base"),
    )
    return np.asarray(estimate(REWARDS, starts, ends, MASK, **knobs))

  @chex.variants(with_jit=True, without_jit=True)
  def test_without_spans_every_token_of_a_right_row_has_the_bonus(self):
    expected = np.broadcast_to(1.1 * REWARDS[:, None], (N, T))
    np.testing.assert_allclose(self._rewards(), expected, rtol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_redundant_tokens_lose_by_the_length_of_their_row(self):
    starts = NONE.at[0].set(2).at[1].set(1).at[2].set(0)
    ends = NONE.at[0].set(5).at[1].set(3).at[2].set(5)
    found = self._rewards(starts, ends, beta_len=0.6)
    np.testing.assert_allclose(found[0], [1.6, 1.6, 1, 1, 1, 1.6], rtol=1e-6)
    np.testing.assert_allclose(found[1, 1:3], 1 + 0.6 * (1 - 3 / 6), rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0.0)  # it is wrong

  @chex.variants(with_jit=True, without_jit=True)
  def test_shorter_rows_are_punished_less(self):
    starts, ends = jnp.zeros(N, int), jnp.full(N, T)
    found = self._rewards(starts, ends)[:, 0]
    right = np.asarray(REWARDS) > 0
    order = np.argsort(LENGTHS[right])
    assert (np.diff(found[right][order]) <= 0).all()

  @chex.variants(with_jit=True, without_jit=True)
  def test_code_and_paper_differ_by_beta(self):
    spans = jnp.zeros(N, int), jnp.full(N, T)
    knobs = {"beta_len": 0.25, "max_length": 10}
    code = self._rewards(*spans, **knobs)
    paper = self._rewards(*spans, redundant_base="paper", **knobs)
    right = np.asarray(REWARDS) > 0
    np.testing.assert_allclose((code - paper)[right], 0.25, rtol=1e-5)
    np.testing.assert_allclose(paper[0], 1 - 0.25 * 6 / 10, rtol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_an_empty_span_takes_nothing(self):
    at = jnp.full(N, 2)
    np.testing.assert_array_equal(self._rewards(at, at), self._rewards())

  @parameterized.parameters(
    ({"beta_len": -0.1}, "beta_len must be 0"),
    ({"max_length": 0}, "max_length must be at least 1"),
    ({"redundant_base": "text"}, "redundant_base must be code or paper"),
  )
  def test_bad_knobs(self, knobs, message):
    with pytest.raises(ValueError, match=message):
      positions.decoupled_rewards(REWARDS, NONE, NONE, MASK, **knobs)


class PositionNormalizedTest(chex.TestCase):
  def _credit(self, rewards, weights=None, group_size=G, **knobs):
    estimate = self.variant(
      positions.position_normalized, static_argnames=("group_size", "eps")
    )
    found = estimate(rewards, MASK, weights, group_size=group_size, **knobs)
    return np.asarray(found)

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_worth_the_same_everywhere_have_the_credit_of_grpo(self):
    found = self._credit(jnp.broadcast_to(REWARDS[:, None], (N, T)))
    expected = group.group_normalized(REWARDS, group_size=G, eps=1e-6)
    np.testing.assert_allclose(
      found, np.where(MASK, expected[:, None], 0.0), rtol=1e-6
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_padded_rows_are_among_the_siblings(self):
    rewards = jax.random.normal(jax.random.key(0), (N, T))
    found = self._credit(rewards)
    grouped = np.asarray(rewards).reshape(-1, G, T)
    std = grouped.std(axis=1, ddof=1, keepdims=True) + 1e-6
    whole = (grouped - grouped.mean(axis=1, keepdims=True)) / std
    np.testing.assert_allclose(whole.sum(axis=1), 0.0, atol=1e-5)
    expected = np.where(MASK, whole.reshape(N, T), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_among_right_rows_only_the_redundant_lose(self):
    starts, ends = NONE.at[5].set(2), NONE.at[5].set(6)
    ones = jnp.ones(N)
    rewards = positions.decoupled_rewards(ones, starts, ends, MASK)
    found = self._credit(rewards)
    mask = np.asarray(MASK)
    np.testing.assert_array_equal(found[4:, :2], 0.0)
    assert (found[5, 2:6] < 0).all()
    others = found[[4, 6, 7], 2:][mask[[4, 6, 7], 2:]]
    assert others.size and (others > 0).all()
    np.testing.assert_array_equal(found[:4], 0.0)  # equal: exactly 0

  @chex.variants(with_jit=True, without_jit=True)
  def test_beside_wrong_rows_redundant_tokens_may_keep_credit(self):
    starts, ends = NONE.at[0].set(3), NONE.at[0].set(6)
    rewards = positions.decoupled_rewards(REWARDS, starts, ends, MASK)
    found = self._credit(rewards)
    assert 0 < found[0, 3] < found[0, 2] and found[2, 3] < 0

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_does_not_count_is_not_seen(self):
    rewards = jax.random.normal(jax.random.key(1), (N, T))
    counts = np.arange(N) != 5
    weights = jnp.asarray(counts, jnp.float32)
    dirty = jnp.where(counts[:, None], rewards, jnp.nan)
    found = self._credit(rewards, weights)
    np.testing.assert_array_equal(self._credit(dirty, weights), found)
    np.testing.assert_array_equal(found[5], 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_group_of_one_is_compared_with_nothing(self):
    rewards = jnp.broadcast_to(REWARDS[:, None], (N, T))
    found = self._credit(rewards, group_size=1)
    np.testing.assert_allclose(found, np.where(MASK, rewards, 0), rtol=1e-5)
