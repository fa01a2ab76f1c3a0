"""Generalised advantages: what lam and gamma make of them, holes, padding."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import gae, token

N, T = 6, 7


def _batch(seed=0):
  """Rewards, values, and a mask with holes, a full row and an empty one."""
  keys = jax.random.split(jax.random.key(seed), 3)
  rewards = jax.random.normal(keys[0], (N, T))
  values = jax.random.normal(keys[1], (N, T))
  mask = jax.random.bernoulli(keys[2], 0.6, (N, T))
  return rewards, values, mask.at[0].set(True).at[1].set(False)


def _next_own(values, mask):
  """Value of the next token of the mask, 0 behind the last; by hand."""
  out = np.zeros(values.shape, np.float32)
  for row in range(N):
    own = np.flatnonzero(mask[row])
    for here, after in zip(own, own[1:], strict=False):
      out[row, here] = values[row, after]
  return out


class GeneralizedAdvantagesTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_without_discounts_they_are_rewards_to_go_less_values(self):
    rewards, values, mask = _batch()
    fn = self.variant(gae.generalized_advantages)
    found = fn(rewards, values, mask)
    to_go = token.discounted_returns(rewards, mask)
    wanted = jnp.where(mask, to_go - values, 0.0)
    np.testing.assert_allclose(found.advantages, wanted, atol=1e-5)
    np.testing.assert_allclose(found.returns, to_go, atol=1e-5)

  def test_lam_one_gives_discounted_returns(self):
    rewards, values, mask = _batch(1)
    found = gae.generalized_advantages(rewards, values, mask, gamma=0.8)
    returns = token.discounted_returns(rewards, mask, gamma=0.8)
    np.testing.assert_allclose(found.returns, returns, atol=1e-5)

  @parameterized.parameters(1.0, 0.9, 0.0)
  def test_lam_zero_is_the_one_step_error(self, gamma):
    rewards, values, mask = _batch(2)
    found = gae.generalized_advantages(
      rewards, values, mask, gamma=gamma, lam=0.0
    )
    after = _next_own(np.asarray(values), np.asarray(mask))
    wanted = jnp.where(mask, rewards + gamma * after - values, 0.0)
    np.testing.assert_allclose(found.advantages, wanted, atol=1e-6)

  def test_they_are_the_sum_of_errors_to_come(self):
    rewards, values, mask = _batch(3)
    knobs = {"gamma": 0.9, "lam": 0.7}
    found = gae.generalized_advantages(rewards, values, mask, **knobs)
    errors = gae.generalized_advantages(
      rewards, values, mask, gamma=0.9, lam=0.0
    ).advantages
    wanted = token.discounted_returns(errors, mask, gamma=0.9 * 0.7)
    np.testing.assert_allclose(found.advantages, wanted, atol=1e-5)

  def test_a_critic_that_is_right_leaves_nothing(self):
    _, _, mask = _batch(4)
    outcome = jnp.asarray([0.9, 1.0, -3.3, 0.1, 1000.7, 0.0])
    rewards = token.last_token_rewards(outcome, mask)
    values = jnp.broadcast_to(outcome[:, None], mask.shape)
    for lam in (0.0, 0.95, 1.0):
      found = gae.generalized_advantages(rewards, values, mask, lam=lam)
      np.testing.assert_array_equal(found.advantages, 0.0)

  def test_a_hole_takes_no_time(self):
    rewards, values, _ = _batch(5)
    own = [0, 2, 3, 6]
    mask = jnp.zeros((N, T), bool).at[:, jnp.asarray(own)].set(True)
    knobs = {"gamma": 0.9, "lam": 0.8}
    holed = gae.generalized_advantages(rewards, values, mask, **knobs)
    dense = gae.generalized_advantages(
      rewards[:, own], values[:, own], mask[:, own], **knobs
    )
    np.testing.assert_array_equal(holed.advantages[:, own], dense.advantages)
    np.testing.assert_array_equal(holed.returns[:, own], dense.returns)

  def test_carry_leaves_in_a_hole_what_passes_through(self):
    rewards, values, mask = _batch(6)
    plain = gae.generalized_advantages(rewards, values, mask, lam=0.9)
    carried = gae.generalized_advantages(
      rewards, values, mask, lam=0.9, carry=True
    )
    for one, other in zip(plain, carried, strict=True):
      np.testing.assert_array_equal(one, jnp.where(mask, other, 0.0))
    for row, t in zip(*np.nonzero(~np.asarray(mask)), strict=True):
      after = carried.advantages[row, t + 1] if t + 1 < T else 0.0
      self.assertEqual(carried.advantages[row, t], after)

  @parameterized.parameters(np.nan, np.inf)
  def test_padding_may_hold_anything(self, junk):
    rewards, values, mask = _batch()
    dirty = (jnp.where(mask, x, junk) for x in (rewards, values))
    chex.assert_trees_all_equal(
      gae.generalized_advantages(*dirty, mask, lam=0.9),
      gae.generalized_advantages(rewards, values, mask, lam=0.9),
    )

  def test_no_gradient_comes_back_to_the_values(self):
    rewards, values, mask = _batch()

    def total(values):
      return sum(
        x.sum()
        for carry in (False, True)
        for x in gae.generalized_advantages(rewards, values, mask, carry=carry)
      )

    np.testing.assert_array_equal(jax.grad(total)(values), 0.0)

  def test_worked_example(self):
    """Two own tokens around one of a tool; gamma = lam = 1/2."""
    found = gae.generalized_advantages(
      jnp.asarray([[0.0, 5.0, 1.0]]),
      jnp.asarray([[0.2, 9.0, 0.6]]),
      jnp.asarray([[True, False, True]]),
      gamma=0.5,
      lam=0.5,
    )
    # delta_2 = 1 - 0.6 = 0.4; delta_0 = 0.5 * 0.6 - 0.2 = 0.1
    advantages = [[0.1 + 0.25 * 0.4, 0.0, 0.4]]
    np.testing.assert_allclose(found.advantages, advantages, atol=1e-7)
    np.testing.assert_allclose(found.returns, [[0.4, 0.0, 1.0]], atol=1e-7)

  @parameterized.parameters(
    {"gamma": 1.01}, {"gamma": -0.1}, {"lam": 2.0}, {"lam": float("nan")}
  )
  def test_bad_discounts_are_refused(self, **knobs):
    (name,) = knobs
    with self.assertRaisesRegex(ValueError, f"{name} must be in"):
      gae.generalized_advantages(*_batch(), **knobs)


class ExplainedVarianceTest(chex.TestCase):
  def test_one_if_right_zero_if_constant_negative_if_worse(self):
    returns, _, mask = _batch()
    share = lambda values: gae.explained_variance(values, returns, mask)  # noqa: E731
    np.testing.assert_allclose(share(returns), 1.0, atol=1e-6)
    np.testing.assert_allclose(share(returns + 3.0), 1.0, atol=1e-6)
    constant = jnp.full(returns.shape, 0.4)
    np.testing.assert_allclose(share(constant), 0.0, atol=1e-6)
    np.testing.assert_allclose(share(-returns), -3.0, atol=1e-5)

  def test_equal_returns_and_no_tokens_are_finite(self):
    returns, values, mask = _batch()
    equal = jnp.full(returns.shape, 0.9)
    self.assertEqual(gae.explained_variance(values, equal, mask), 0.0)
    nothing = jnp.zeros_like(mask)
    dirty = jnp.full(returns.shape, jnp.nan)
    self.assertEqual(gae.explained_variance(dirty, dirty, nothing), 0.0)
