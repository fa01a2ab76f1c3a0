"""The KL as part of the reward: what is subtracted, from whom, measured how."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import token
from jaxrl_llm.objectives import kl
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import kl_in_reward


def _run(rollout, *args, **knobs):
  transform = kl_in_reward.kl_in_reward(*args, **knobs)
  return transform.update(rollout, transform.init())[0]


class RewardKlTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_with_k1_it_is_the_penalty_of_rloo(self):
    rollout = rollouts.make_rollout()
    args = (rollout.old_logprobs, rollout.ref_logprobs, rollout.mask)
    run = self.variant(lambda r: kl_in_reward.reward_kl(r, *args, coef=0.3)[0])
    expected = token.kl_penalized_outcome(rollout.rewards, *args, beta=0.3)
    chex.assert_trees_all_close(run(rollout.rewards), expected, rtol=1e-6)

  def test_a_worked_example(self):
    rewards, measured = kl_in_reward.reward_kl(
      jnp.asarray([1.0, 0.0]),
      jnp.asarray([[-1.0, -2.0], [-1.0, 7.0]]),
      jnp.asarray([[-1.5, -1.0], [-3.0, -7.0]]),
      jnp.asarray([[True, True], [True, False]]),
      coef=0.1,
    )
    np.testing.assert_allclose(rewards, [1.05, -0.2], rtol=1e-6)
    np.testing.assert_allclose(measured, (-0.25 + 2.0) / 2, rtol=1e-6)

  @parameterized.parameters(*kl_in_reward.REWARD_KL)
  def test_no_penalty_where_policy_and_reference_agree(self, name):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(ref_logprobs=rollout.old_logprobs)
    estimator = kl_in_reward.REWARD_KL[name]
    after = _run(rollout, 5.0, estimator=estimator)
    np.testing.assert_array_equal(after.rewards, rollout.rewards)

  @parameterized.parameters(*kl_in_reward.REWARD_KL)
  def test_padding_and_dropped_rows_are_not_read(self, name):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(weights=rollout.weights.at[2].set(0.0))
    seen = rollout.mask & (rollout.weights > 0)[:, None]
    dirty = rollout.replace(
      old_logprobs=jnp.where(seen, rollout.old_logprobs, jnp.nan),
      ref_logprobs=jnp.where(seen, rollout.ref_logprobs, -jnp.inf),
    )
    estimator = kl_in_reward.REWARD_KL[name]
    run = lambda r: _run(r, 0.1, estimator=estimator)  # noqa: E731
    clean, dirty = run(rollout), run(dirty)
    chex.assert_trees_all_equal(clean.rewards, dirty.rewards)
    chex.assert_tree_all_finite(dirty.extras)
    self.assertEqual(float(dirty.rewards[2]), float(rollout.rewards[2]))

  def test_the_coefficient_may_be_an_extra(self):
    rollout = rollouts.make_rollout()
    named = rollout.replace(extras={"kl_coef": jnp.asarray(0.3)})
    chex.assert_trees_all_close(
      _run(named, "kl_coef").rewards, _run(rollout, 0.3).rewards
    )

  def test_it_is_measured_by_row_then_over_rows(self):
    rollout = rollouts.make_rollout()
    empty = rollout.replace(mask=rollout.mask.at[0].set(False))
    d = jnp.where(empty.mask, empty.old_logprobs - empty.ref_logprobs, 0.0)
    each = d.sum(axis=1)[1:] / empty.mask.sum(axis=1)[1:]
    measured = _run(empty, 0.3).extras["metric/reference_kl"]
    np.testing.assert_allclose(measured, each.mean(), rtol=1e-5)

  def test_what_is_missing_is_named(self):
    rollout = rollouts.make_rollout().replace(ref_logprobs=None)
    with self.assertRaisesRegex(ValueError, "'ref_logprobs' in `needs`"):
      _run(rollout, 0.1)


class PolicyGradientTest(chex.TestCase):
  """Why k1 is the exact one here: expectations over a categorical."""

  def _gradient(self, estimator):
    logits, ref = jax.random.normal(jax.random.key(1), (2, 7))
    q = jax.nn.log_softmax(ref)
    reward = -estimator(jax.nn.log_softmax(logits) - q)

    def surrogate(logits):
      logp = jax.nn.log_softmax(logits)
      return (jax.lax.stop_gradient(jnp.exp(logp)) * reward * logp).sum()

    def divergence(logits):
      logp = jax.nn.log_softmax(logits)
      return (jnp.exp(logp) * (logp - q)).sum()

    return jax.grad(surrogate)(logits), -jax.grad(divergence)(logits)

  def test_k1_as_a_reward_has_the_gradient_of_the_kl(self):
    chex.assert_trees_all_close(*self._gradient(kl.k1), atol=1e-6)

  def test_k3_as_a_reward_has_not(self):
    found, exact = self._gradient(kl.k3)
    self.assertGreater(float(jnp.abs(found - exact).max()), 0.05)
