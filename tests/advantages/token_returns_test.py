"""Outcomes and rewards of tokens, standardised together."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group, token_returns

G, N, T = 4, 8, 5
KEYS = jax.random.split(jax.random.key(0), 3)
REWARDS = jax.random.normal(KEYS[0], (N,))
TOKENS = 0.1 * jax.random.normal(KEYS[1], (N, T))
MASK = jnp.arange(T)[None] < jax.random.randint(KEYS[2], (N, 1), 1, T + 1)


class GroupTokenReturnsTest(chex.TestCase):
  def _estimate(self, rewards=REWARDS, tokens=TOKENS, weights=None, **knobs):
    estimate = self.variant(
      token_returns.group_token_returns,
      static_argnames=("group_size", "scale", "eps", "min_std"),
    )
    return np.asarray(
      estimate(rewards, tokens, MASK, weights, group_size=G, **knobs)
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_without_rewards_of_tokens_it_is_grpo(self):
    expected = group.group_normalized(REWARDS, group_size=G)
    np.testing.assert_allclose(
      self._estimate(tokens=0 * TOKENS),
      np.where(MASK, expected[:, None], 0.0),
      rtol=1e-5,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_means_over_tokens_sum_to_zero_and_are_standardised(self):
    found = self._estimate()
    means = found.sum(axis=1) / np.asarray(MASK.sum(axis=1))
    returns = np.where(MASK, REWARDS[:, None] + TOKENS, 0.0)
    whole = returns.sum(axis=1) / np.asarray(MASK.sum(axis=1))
    expected = group.group_normalized(jnp.asarray(whole), group_size=G)
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-6)
    sums = means.reshape(-1, G).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_a_constant_changes_nothing(self):
    np.testing.assert_allclose(
      self._estimate(rewards=REWARDS + 8.0), self._estimate(), atol=1e-4
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_within_a_row_tokens_differ_by_their_rewards(self):
    found = self._estimate(scale=False)
    both = np.asarray(MASK[:, 0] & MASK[:, 1])
    np.testing.assert_allclose(
      (found[:, 1] - found[:, 0])[both],
      np.asarray(TOKENS[:, 1] - TOKENS[:, 0])[both],
      rtol=1e-4,
      atol=1e-6,
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_equal_completions_are_not_divided(self):
    tokens = jnp.where(jnp.arange(T)[None] == 0, 0.1, 0.0) * jnp.ones((N, 1))
    ones = jnp.ones(N)
    full = jnp.ones((N, T), bool)

    def estimate(**knobs):
      return token_returns.group_token_returns(
        ones, tokens, full, group_size=G, **knobs
      )

    np.testing.assert_allclose(estimate()[:, 0], 0.08, rtol=1e-5)
    np.testing.assert_allclose(estimate(min_std=0.0)[:, 0], 800, rtol=1e-4)
    equal = self._estimate(rewards=0.9 * ones, tokens=0 * TOKENS, min_std=0.0)
    np.testing.assert_array_equal(equal, 0.0)

  @chex.variants(with_jit=True, without_jit=True)
  def test_what_does_not_count_is_not_seen(self):
    weights = jnp.arange(N) != 5
    found = self._estimate(weights=weights.astype(jnp.float32))
    dirty = self._estimate(
      rewards=jnp.where(weights, REWARDS, 100.0),
      tokens=jnp.where(MASK & weights[:, None], TOKENS, jnp.nan),
      weights=weights.astype(jnp.float32),
    )
    np.testing.assert_array_equal(found, dirty)
    np.testing.assert_array_equal(found[5], 0.0)
