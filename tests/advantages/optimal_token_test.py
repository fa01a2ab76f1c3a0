"""The optimal token baseline: least variance, holes, the longest row."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import optimal_token, token

KEYS = jax.random.split(jax.random.key(0), 3)
LENGTHS = jnp.array([5, 3, 2, 3, 4, 4, 1, 0])
MASK = jnp.arange(6)[None] < LENGTHS[:, None]
REWARDS = jax.random.normal(KEYS[0], MASK.shape)
LOGPROBS = -jax.random.exponential(KEYS[1], MASK.shape)
SQUARES = jax.random.uniform(KEYS[2], MASK.shape)
VARIANTS = {
  "plain": optimal_token.optimal_token_baseline,
  "tir": optimal_token.tir_optimal_token_baseline,
}
each_variant = parameterized.named_parameters(VARIANTS.items())


def _inputs(mask=MASK, junk=0.0):
  dirty = lambda x: jnp.where(mask, x, junk)  # noqa: E731
  return dirty(REWARDS), mask, dirty(LOGPROBS), dirty(SQUARES)


class OptimalTokenTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @each_variant
  def test_energy_weighted_advantages_of_a_position_sum_to_zero(self, fn):
    run = self.variant(lambda *args: fn(*args, group_size=4))
    actual = run(*_inputs())
    own = np.where(MASK, 1 - 2 * np.exp(LOGPROBS) + SQUARES, 0.0)
    energy = np.where(MASK, own.cumsum(axis=1), 0.0)
    sums = (energy * actual).reshape(2, 4, 6).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=2e-5)

  def test_without_holes_both_are_one(self):
    for zero_tail in (False, True):
      plain, tir = (
        fn(*_inputs(), group_size=4, zero_tail=zero_tail)
        for fn in VARIANTS.values()
      )
      np.testing.assert_allclose(plain, tir, rtol=1e-6, atol=1e-7)

  def test_tir_compares_the_kth_own_tokens(self):
    order = jnp.array([0, 2, 4, 1, 3, 5])  # spreads tokens, with holes
    spread = lambda x: jnp.zeros_like(x).at[:, order].set(x)  # noqa: E731
    back = spread(MASK)
    in_order = jnp.argsort(~back, axis=1, stable=True)
    mask = back
    pack = lambda x: jnp.take_along_axis(x, in_order, axis=1)  # noqa: E731
    rewards, _, logprobs, squares = _inputs(mask)
    packed = optimal_token.optimal_token_baseline(
      pack(rewards), pack(mask), pack(logprobs), pack(squares), group_size=4
    )
    actual = optimal_token.tir_optimal_token_baseline(
      rewards, mask, logprobs, squares, group_size=4
    )
    np.testing.assert_allclose(pack(actual), packed, rtol=1e-6, atol=1e-7)

  @each_variant
  def test_the_tail_of_the_longest_row_has_no_baseline_if_asked(self, fn):
    returns = token.discounted_returns(*_inputs()[:2])
    with_tail = fn(*_inputs(), group_size=4, zero_tail=True)
    without = fn(*_inputs(), group_size=4)
    np.testing.assert_allclose(with_tail[0, 3:5], returns[0, 3:5], rtol=1e-6)
    np.testing.assert_array_equal(without[0, 3:5], 0.0)  # its own baseline
    rest = np.ones(MASK.shape, bool)
    rest[0, 3:5] = False  # two rows share the lead in the second group
    np.testing.assert_array_equal(with_tail[rest], without[rest])

  @each_variant
  def test_padding_is_never_read(self, fn):
    mask = MASK.at[1].set(False)  # a dropped row
    clean = fn(*_inputs(mask), group_size=4, zero_tail=True)
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
      dirty = fn(*_inputs(mask, junk), group_size=4, zero_tail=True)
      chex.assert_trees_all_equal(clean, dirty)
    np.testing.assert_array_equal(clean[~np.asarray(mask)], 0.0)

  @each_variant
  def test_rollout_weights_enter_squared(self, fn):
    weights = jnp.full(MASK.shape, 3.0)
    once = fn(*_inputs(), group_size=4)
    again = fn(*_inputs(), weights, group_size=4)
    np.testing.assert_allclose(once, again, rtol=1e-5, atol=1e-6)
    uneven = fn(*_inputs(), weights.at[0].set(0.0), group_size=4)
    self.assertGreater(float(jnp.abs(uneven - once).max()), 1e-3)

  @each_variant
  def test_a_group_of_one_is_refused(self, fn):
    with self.assertRaisesRegex(ValueError, "at least 2, got 1"):
      fn(*_inputs(), group_size=1)
