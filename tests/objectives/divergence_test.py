"""DPPO and DRO: which tokens are kept, and where the pull ends."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import divergence, surrogates

KEEPS = parameterized.named_parameters(
  ("tv", divergence.binary_tv_keep), ("kl", divergence.binary_kl_keep)
)


def _many():
  """Log-probs now and before, and advantages."""
  keys = jax.random.split(jax.random.key(5), 3)
  logprobs = -jax.random.exponential(keys[0], (8, 16)) - 0.01
  old = jnp.minimum(logprobs + jax.random.normal(keys[1], (8, 16)), -1e-3)
  return logprobs, old, jax.random.normal(keys[2], (8, 16))


class KeepTest(chex.TestCase):
  @KEEPS
  def test_on_policy_all_are_kept(self, keep):
    logprobs, _, advantages = _many()
    kept = keep(logprobs, logprobs, advantages, bound_low=1e-6, bound_high=1e-6)
    self.assertTrue(bool(kept.all()))

  @KEEPS
  def test_what_moves_back_is_kept_however_far_it_is(self, keep):
    logprobs, old, _ = _many()
    back = jnp.sign(old - logprobs)
    kept = keep(logprobs, old, back, bound_low=1e-9, bound_high=1e-9)
    self.assertTrue(bool(kept.all()))
    away = keep(logprobs, old, -back, bound_low=1e-9, bound_high=1e-9)
    self.assertFalse(bool(away.any()))

  @KEEPS
  def test_sure_tokens_are_finite(self, keep):
    logprobs = jnp.array([[0.0, -1e-9, -80.0, 0.0]])
    old = jnp.array([[0.0, -80.0, -1e-9, -1.0]])
    for sign in (1.0, -1.0):
      keep(logprobs, old, jnp.full((1, 4), sign))
    kept = keep(logprobs, old, jnp.array([[1.0, 1.0, -1.0, 1.0]]))
    np.testing.assert_array_equal(kept, [[True, False, False, False]])

  @KEEPS
  def test_jit_changes_nothing(self, keep):
    args = _many()
    np.testing.assert_array_equal(keep(*args), jax.jit(keep)(*args))

  def test_tv_by_hand(self):
    old = jnp.log(jnp.full((1, 4), 0.4))
    now = jnp.log(jnp.array([[0.5, 0.6, 0.3, 0.2]]))
    credit = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    kept = divergence.binary_tv_keep(now, old, credit)
    np.testing.assert_array_equal(kept, [[True, False, True, False]])

  def test_a_rare_token_may_double_and_a_common_one_may_not(self):
    old = jnp.log(jnp.array([[1e-4, 0.4]]))
    now = old + jnp.log(2.0)
    for keep in (divergence.binary_tv_keep, divergence.binary_kl_keep):
      kept = keep(now, old, jnp.ones((1, 2)))
      np.testing.assert_array_equal(kept, [[True, False]])

  def test_kl_is_that_of_two_outcomes(self):
    p, q = 0.7, 0.5
    exact = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    now, old = (jnp.log(jnp.full((1, 1), x)) for x in (p, q))
    for bound, kept in ((0.99 * exact, False), (1.01 * exact, True)):
      actual = divergence.binary_kl_keep(
        now, old, jnp.ones((1, 1)), bound_high=bound, bound_low=1e-9
      )
      self.assertEqual(bool(actual[0, 0]), kept)

  @parameterized.parameters(
    (0.0, 0.1, 20.0, "bound_low"),
    (0.1, float("nan"), 20.0, "bound_high"),
    (0.1, 0.1, 0.5, "truncation"),
  )
  def test_bad_bounds_are_named(self, low, high, truncation, name):
    with self.assertRaisesRegex(ValueError, name):
      divergence.check_bounds(low, high, truncation)


class DppoTest(chex.TestCase):
  def test_kept_tokens_have_the_unclipped_gradient(self):
    logprobs, old, advantages = _many()
    keep = divergence.binary_tv_keep(logprobs, old, advantages)

    def ours(x):
      return divergence.dppo_surrogate(x, x - old, advantages, keep)[0].sum()

    def unclipped(x):
      return surrogates.unclipped_surrogate(x - old, advantages)[0].sum()

    expected = jnp.where(keep, jax.grad(unclipped)(logprobs), 0.0)
    chex.assert_trees_all_close(jax.grad(ours)(logprobs), expected, rtol=1e-5)

  def test_the_weight_is_truncated(self):
    one, keep = jnp.ones((1, 2)), jnp.array([[True, False]])
    loss, cut = divergence.dppo_surrogate(
      -one, 5.0 * one, one, keep, truncation=2.0
    )
    np.testing.assert_array_equal(loss, [[2.0, 0.0]])
    np.testing.assert_array_equal(cut["truncated_fraction"], [[1, 0]])
    np.testing.assert_array_equal(cut["mask_fraction"], [[0, 1]])


class DroTest(chex.TestCase):
  def _gradient(self, logprobs, old, advantages, beta):
    return jax.grad(
      lambda x: divergence.dro_surrogate(x, x - old, advantages, beta=beta)[
        0
      ].sum()
    )(logprobs)

  def test_the_gradient_is_that_of_least_squares(self):
    logprobs, old, advantages = _many()
    squares = lambda x: ((advantages - 0.3 * (x - old)) ** 2).sum() / 0.6  # noqa: E731
    chex.assert_trees_all_close(
      self._gradient(logprobs, old, advantages, 0.3),
      jax.grad(squares)(logprobs),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_on_policy_it_is_reinforce(self):
    logprobs, _, advantages = _many()
    chex.assert_trees_all_close(
      self._gradient(logprobs, logprobs, advantages, 7.0), -advantages
    )

  def test_the_pull_ends_at_credit_over_beta(self):
    _, old, advantages = _many()
    grad = self._gradient(old + advantages / 0.5, old, advantages, 0.5)
    chex.assert_trees_all_close(grad, jnp.zeros_like(grad), atol=1e-5)
