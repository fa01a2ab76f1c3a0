"""HPO, ASPO and PEARL as whole methods, in numbers."""

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts

REWARDS = jnp.array([1.0, 0, 0, 0, 0, 0, 0, 1.0])


def _rollout(rewards=REWARDS):
  return rollouts.make_rollout().replace(rewards=rewards)


def _gradient(config, rollout):
  scores = rollouts.make_scores(rollout)
  return contract.evaluate(config.build(), scores, rollout)[2].logprobs


class HpoTest(chex.TestCase):
  def test_alpha_1_is_grpo_with_a_mean_over_tokens(self):
    dapo = methods.Dapo(clip_high=0.2, filter_groups=False, eps=1e-6)
    np.testing.assert_array_equal(
      _gradient(methods.Hpo(alpha=1.0), _rollout()),
      _gradient(dapo, _rollout()),
    )

  def test_alpha_0_learns_from_successes_alone(self):
    grads = _gradient(methods.Hpo(alpha=0.0), _rollout())
    learns = np.flatnonzero(jnp.abs(grads).sum(axis=1) > 0)
    np.testing.assert_array_equal(learns, [0, 7])

  def test_adaptive_it_is_hpo_with_the_alpha_that_it_logs(self):
    method = methods.Hpo(adaptive=True).build()
    rollout, _ = method.transform.update(_rollout(), method.transform.init())
    self.assertAlmostEqual(
      float(rollout.extras["metric/alpha"]), 1 / 3, places=6
    )
    np.testing.assert_allclose(
      _gradient(methods.Hpo(adaptive=True), _rollout()),
      _gradient(methods.Hpo(alpha=1 / 3), _rollout()),
      rtol=1e-5,
    )

  def test_no_success_and_no_signal(self):
    grads = _gradient(methods.Hpo(adaptive=True), _rollout(jnp.zeros(8)))
    np.testing.assert_array_equal(grads, 0.0)


class AspoTest(chex.TestCase):
  def _credit(self, config):
    rollout = _rollout(jnp.array([1.0, 1, 1, 0, 1, 1, 0, 0]))
    calls = jnp.array([4, 1, -1, 0, 2, 2, -1, 3], jnp.int32)
    rollout = rollout.replace(extras={"first_call": calls})
    return config.build().advantage(rollout)

  def test_right_answers_that_call_are_shaped_and_no_others(self):
    plain = self._credit(methods.Aspo(k=0.0))
    shaped = self._credit(methods.Aspo())
    changed = np.flatnonzero(plain != shaped)
    np.testing.assert_array_equal(changed, [0, 1])
    self.assertGreater(float(shaped[1]), float(shaped[0]))

  def test_correct_is_a_threshold(self):
    plain = self._credit(methods.Aspo(correct=1.5))
    np.testing.assert_array_equal(plain, self._credit(methods.Aspo(k=0.0)))


class PearlTest(chex.TestCase):
  def _rollout(self):
    parts = jnp.stack([REWARDS, 100.0 * jnp.roll(REWARDS, 4)], axis=1)
    extras = {
      "reward_components": parts,
      "reward_weights": jnp.broadcast_to(jnp.array([1.0, 0.5]), (8, 2)),
    }
    return _rollout(parts.sum(axis=1)).replace(extras=extras)

  def test_effective_weights_are_those_of_the_run(self):
    credit = methods.Pearl().build().advantage(self._rollout())
    # One success in four: each z-score is 1.5 and -0.5.
    np.testing.assert_allclose(credit[0], 1.5 - 0.25, rtol=1e-5)
    np.testing.assert_allclose(credit[3], -0.5 + 0.75, rtol=1e-5)

  def test_a_list_for_each_reward(self):
    lists = methods.Pearl(edges="0.5,50", levels="0_1").build()
    np.testing.assert_allclose(
      lists.advantage(self._rollout()),
      methods.Pearl().build().advantage(self._rollout()),
      rtol=1e-5,
    )
    wrong = methods.Pearl(edges="0.5,50,1", levels="0_1").build()
    with self.assertRaisesRegex(ValueError, "each of 2 components, got 3"):
      wrong.advantage(self._rollout())
