"""The novelty bonus as a method."""

import chex
import jax.numpy as jnp

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts


def _evaluated(config, rewards):
  rollout = rollouts.make_rollout().replace(rewards=jnp.asarray(rewards))
  scores = rollouts.make_scores(rollout, scale=1e-3)
  return contract.evaluate(config.build(), scores, rollout)


class NoveltyGspoTest(chex.TestCase):
  MIXED = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0)

  def test_without_a_bonus_it_is_gspo(self):
    chex.assert_trees_all_close(
      _evaluated(methods.NoveltyGspo(coef=0.0), self.MIXED),
      _evaluated(methods.Gspo(eps=1e-6), self.MIXED),
      rtol=1e-6,
    )

  def test_the_bonus_is_of_the_reference_not_of_the_policy(self):
    rollout = rollouts.make_rollout().replace(rewards=jnp.asarray(self.MIXED))
    method = methods.NoveltyGspo().build()

    def credit(rollout):
      return method.advantage(method.transform.update(rollout, ())[0])

    other = rollout.replace(old_logprobs=rollout.old_logprobs - 3.0)
    chex.assert_trees_all_equal(credit(rollout), credit(other))
    strange = rollout.ref_logprobs.at[0].add(-9.0)
    most = credit(rollout.replace(ref_logprobs=strange))
    self.assertEqual(int(jnp.argmax(most[:4])), 0)

  def test_a_solved_group_learns_from_the_bonus_alone(self):
    rewards = (1.0,) * 4 + (0.0,) * 4
    grads = _evaluated(methods.NoveltyGspo(), rewards)[2].logprobs
    self.assertGreater(float(jnp.abs(grads[:4]).max()), 1e-4)
    self.assertEqual(float(jnp.abs(grads[4:]).max()), 0.0)
    config = methods.NoveltyGspo(bonus_on_solved=False)
    grads = _evaluated(config, rewards)[2].logprobs
    self.assertEqual(float(jnp.abs(grads).max()), 0.0)
