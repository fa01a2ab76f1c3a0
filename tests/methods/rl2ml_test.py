"""RL2ML as a method: which credit, how weighed."""

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import success_counts
from jaxrl_llm.testing import contract, rollouts


class Rl2mlTest(chex.TestCase):
  def _gradient(self, **knobs):
    rollout = rollouts.make_rollout()
    method = methods.Rl2ml(**knobs).build()
    scores = rollouts.make_scores(rollout, scale=0.0)
    return rollout, contract.evaluate(method, scores, rollout)[2].logprobs

  def test_the_gradient_is_credit_times_that_of_the_whole_completion(self):
    rollout, found = self._gradient(q=2.0)
    credit = success_counts.success_counted(
      rollout.rewards > 0.5, group_size=4, q=2.0
    )
    expected = jnp.where(rollout.mask, -credit[:, None] / 8, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)

  def test_order_0_is_rloo_without_its_kl(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    mine = contract.evaluate(methods.Rl2ml(q=0.0).build(), scores, rollout)
    rloo = contract.evaluate(methods.Rloo(beta=0.0).build(), scores, rollout)
    np.testing.assert_allclose(
      mine[2].logprobs, rloo[2].logprobs, rtol=1e-5, atol=1e-7
    )

  def test_a_threshold_says_what_a_success_is(self):
    rollout = rollouts.make_rollout()
    far = rollout.replace(rewards=10.0 * rollout.rewards - 3.0)
    chex.assert_trees_all_equal(
      methods.Rl2ml(threshold=6.9).build().advantage(far),
      methods.Rl2ml().build().advantage(rollout),
    )

  def test_none_chooses_q_for_the_batch_and_says_which(self):
    rollout = rollouts.make_rollout(groups=4, group_size=8)
    method = methods.Rl2ml(q=None, pass_at=8).build()
    shown, _ = method.transform.update(rollout, method.transform.init())
    rates = success_counts.success_rates(rollout.rewards > 0.5, group_size=8)
    best = success_counts.choose_q(rates, group_size=8, pass_at=8)
    chex.assert_trees_all_equal(shown.extras["metric/q"], best)
    fixed = methods.Rl2ml(q=float(best)).build()
    chex.assert_trees_all_close(
      method.advantage(shown), fixed.advantage(rollout), rtol=1e-6
    )
