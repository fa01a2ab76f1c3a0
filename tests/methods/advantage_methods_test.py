"""Methods that differ from GRPO by their credit, seen in numbers."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import components, group, token
from jaxrl_llm.methods import base
from jaxrl_llm.testing import contract, rollouts


def _rollout():
  rollout = rollouts.make_rollout()
  rewards = jnp.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.0, 0.0, 1.0])
  return rollout.replace(rewards=rewards)


def _credit(config, rollout):
  return config.build().advantage(rollout)


def _gradient(config, rollout, scale=0.0):
  scores = rollouts.make_scores(rollout, scale=scale)
  return contract.evaluate(config.build(), scores, rollout)


class GrpoTest(chex.TestCase):
  def test_scale_none_is_the_credit_of_dr_grpo(self):
    chex.assert_trees_all_equal(
      _credit(methods.Grpo(scale="none"), _rollout()),
      _credit(methods.DrGrpo(), _rollout()),
    )

  def test_scale_batch_divides_all_groups_by_one_number(self):
    plain = _credit(methods.DrGrpo(), _rollout())
    scaled = _credit(methods.Grpo(scale="batch"), _rollout())
    std = np.std(np.asarray(_rollout().rewards), ddof=1) + 1e-4
    np.testing.assert_allclose(scaled, plain / std, rtol=1e-5)


class RlooTest(chex.TestCase):
  def test_credit_is_leave_one_out_of_reward_less_kl(self):
    rollout = _rollout()
    gap = rollout.old_logprobs - rollout.ref_logprobs
    rewards = rollout.rewards - 0.3 * jnp.where(rollout.mask, gap, 0).sum(
      axis=1
    )
    chex.assert_trees_all_close(
      _credit(methods.Rloo(beta=0.3), rollout),
      group.leave_one_out(rewards, group_size=4),
      rtol=1e-5,
      atol=1e-6,
    )

  def test_a_completion_is_one_action(self):
    rollout = _rollout()
    scores = rollouts.make_scores(rollout, scale=0.01)
    method = methods.Rloo(beta=0.0, clip_low=1.0, clip_high=99.0).build()
    loss, _, grads = contract.evaluate(method, scores, rollout)
    gap = scores.logprobs - rollout.old_logprobs
    ratio = jnp.exp(jnp.where(rollout.mask, gap, 0.0).sum(axis=1))
    credit = ratio * method.advantage(rollout) / 8
    np.testing.assert_allclose(loss, -credit.sum(), rtol=1e-5, atol=1e-6)
    expected = jnp.where(rollout.mask, -credit[:, None], 0.0)
    np.testing.assert_allclose(grads.logprobs, expected, rtol=1e-4, atol=1e-6)

  def test_tokens_are_actions_if_asked(self):
    config = methods.Rloo(beta=0.0, ratio="token")
    grads = _gradient(config, _rollout())[2].logprobs
    mask = _rollout().mask
    credit = base.per_token(_credit(config, _rollout()), mask)
    np.testing.assert_allclose(grads, -credit / mask.sum(), rtol=1e-5)

  def test_normalized_credit_has_deviation_1(self):
    credit = _credit(methods.Rloo(beta=0.0, normalize=True), _rollout())
    self.assertAlmostEqual(float(np.std(credit, ddof=1)), 1.0, places=3)


class ReinforcePpTest(chex.TestCase):
  @parameterized.parameters(False, True)
  def test_credit_is_white_over_tokens(self, baseline):
    rollout = _rollout()
    credit = _credit(methods.ReinforcePp(baseline=baseline), rollout)
    own = np.asarray(credit)[np.asarray(rollout.mask)]
    self.assertAlmostEqual(float(own.mean()), 0.0, places=5)
    self.assertAlmostEqual(float(own.std(ddof=1)), 1.0, places=4)

  def test_without_kl_and_discount_it_whitens_rewards(self):
    rollout = _rollout()
    spread = jnp.broadcast_to(rollout.rewards[:, None], rollout.mask.shape)
    chex.assert_trees_all_close(
      _credit(methods.ReinforcePp(beta=0.0), rollout),
      token.whiten(spread, rollout.mask),
      rtol=1e-6,
      atol=1e-6,
    )

  def test_kl_of_a_token_is_credit_of_those_before_it(self):
    rollout = _rollout().replace(ref_logprobs=_rollout().old_logprobs)
    far = rollout.ref_logprobs.at[0, 2].add(-5.0)  # a token that drifted
    config = methods.ReinforcePp(beta=1.0)
    near = _credit(config, rollout)
    change = _credit(config, rollout.replace(ref_logprobs=far)) - near
    self.assertTrue(bool((change[0, :3] < change[0, 3] - 0.5).all()))

  def test_discount_gives_early_tokens_less(self):
    rollout = _rollout()
    credit = _credit(methods.ReinforcePp(beta=0.0, gamma=0.5), rollout)
    own = np.asarray(credit[3])[np.asarray(rollout.mask[3])]
    self.assertTrue(bool((np.diff(own) > 0).all()))

  def test_groups_of_one_are_for_the_form_without_baseline(self):
    self.assertEqual(methods.ReinforcePp().build().min_group_size, 1)
    config = methods.ReinforcePp(baseline=True)
    self.assertEqual(config.build().min_group_size, 2)
    alone = _rollout().replace(group_size=1)
    chex.assert_tree_all_finite(_credit(methods.ReinforcePp(), alone))


class OpoTest(chex.TestCase):
  def test_the_gradient_of_a_group_sums_to_zero(self):
    grads = _gradient(methods.Opo(), _rollout())[2].logprobs
    sums = grads.reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-6)


class GpgTest(chex.TestCase):
  def test_a_uniform_group_does_not_dilute_the_others(self):
    rewards = jnp.array([1.0, 0.0, 0.5, 2.0] + [0.7] * 4)
    rollout = _rollout().replace(rewards=rewards)
    credit = _credit(methods.Gpg(), rollout)
    centred = group.group_centred(rewards, group_size=4)
    np.testing.assert_allclose(credit, 2.0 * centred, rtol=1e-6)

  def test_the_ratio_does_not_matter(self):
    rollout = _rollout()
    near = _gradient(methods.Gpg(), rollout)[2].logprobs
    far = _gradient(methods.Gpg(), rollout, scale=1.0)[2].logprobs
    np.testing.assert_array_equal(near, far)


class PasskTest(chex.TestCase):
  def test_only_the_best_learns(self):
    grads = _gradient(methods.PasskAdvantage(), _rollout())[2].logprobs
    learns = np.asarray(jnp.abs(grads).sum(axis=1) > 0)
    np.testing.assert_array_equal(np.flatnonzero(learns), [3, 7])


class MaxRlTest(chex.TestCase):
  def test_the_rarer_success_is_the_more_it_counts(self):
    rewards = jnp.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    credit = _credit(methods.MaxRl(), _rollout().replace(rewards=rewards))
    np.testing.assert_allclose(credit[0], 3.0, rtol=1e-6)
    np.testing.assert_allclose(credit[4], 1 / 3, rtol=1e-6)


class GdpoTest(chex.TestCase):
  def _two(self):
    parts = jax.random.normal(jax.random.key(3), (8, 2))
    factors = jnp.array([1.0, 0.25])
    extras = {
      "reward_components": parts.at[1, 0].set(jnp.nan),
      "reward_weights": jnp.broadcast_to(factors[None], (8, 2)),
    }
    return _rollout().replace(extras=extras), factors

  @chex.variants(with_jit=True, without_jit=True)
  def test_reads_components_not_rewards(self):
    rollout, factors = self._two()
    credit = self.variant(methods.Gdpo().build().advantage)
    chex.assert_trees_all_close(
      credit(rollout),
      components.gdpo(
        rollout.extras["reward_components"], factors, group_size=4
      ),
      rtol=1e-5,
    )
    other = rollout.replace(rewards=-rollout.rewards)
    chex.assert_trees_all_equal(credit(rollout), credit(other))

  def test_rescaled_over_tokens_it_is_white_over_tokens(self):
    rollout, _ = self._two()
    credit = _credit(methods.Gdpo(rescale="tokens"), rollout)
    own = np.asarray(credit)[np.asarray(rollout.mask)]
    self.assertAlmostEqual(float(own.std(ddof=1)), 1.0, places=4)

  def test_of_one_reward_points_where_grpo_does(self):
    credit = _credit(methods.Gdpo(), _rollout())
    grpo = _credit(methods.Grpo(), _rollout())
    np.testing.assert_allclose(
      credit / grpo, float(credit[0] / grpo[0]), rtol=1e-5
    )

  def test_learns_and_stays_finite_with_nan_components(self):
    rollout, _ = self._two()
    out = _gradient(methods.Gdpo(), rollout)
    chex.assert_tree_all_finite(out)
    self.assertGreater(float(jnp.abs(out[2].logprobs).max()), 0.0)
