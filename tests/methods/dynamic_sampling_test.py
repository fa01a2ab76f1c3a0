"""Dynamic sampling as a wrapper and as DAPO's option: only the plan changes."""

import chex
import jax

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts


class DynamicSamplingTest(chex.TestCase):
  def test_only_the_plan_changes(self):
    inner, outer = methods.Grpo(), methods.DynamicSampling()
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    chex.assert_trees_all_equal(
      contract.evaluate(inner.build(), scores, rollout),
      contract.evaluate(outer.build(), scores, rollout),
    )
    self.assertEqual(inner.build().plan.extras, {})
    self.assertEqual(tuple(outer.build().plan.extras), ("stale",))

  def test_its_rounds_are_those_of_the_methods_own_plan(self):
    method = methods.DynamicSampling(method=methods.Remax(), max_age=0).build()
    self.assertEqual(tuple(method.plan.extras), ("greedy_rewards",))
    self.assertEqual(method.plan.init(), {"surplus": None, "inner": {}})
    self.assertEqual(method.min_group_size, 1)

  def test_dapo_filters_by_default_and_refills_when_asked(self):
    self.assertEqual(methods.Dapo().build().plan.init(), {})
    plan = methods.Dapo(dynamic_sampling=True).build().plan
    self.assertEqual(plan.init(), {"surplus": None, "inner": {}})

  def test_a_group_of_weight_0_leaves_every_denominator(self):
    """What a plan did not find changes nothing, whatever stands there."""
    rollout = rollouts.make_rollout(groups=3)
    scores = rollouts.make_scores(rollout)
    padded = rollout.replace(weights=rollout.weights.at[8:].set(0.0))
    cut = lambda x: x[:8] if x.ndim else x  # noqa: E731
    for config in (methods.Grpo(), methods.Dapo(), methods.DrGrpo()):
      method = config.build()
      loss, _, grads = contract.evaluate(method, scores, padded)
      alone, _, expected = contract.evaluate(
        method, jax.tree.map(cut, scores), jax.tree.map(cut, rollout)
      )
      chex.assert_trees_all_close(loss, alone, rtol=1e-5)
      chex.assert_trees_all_close(
        grads.logprobs[:8], expected.logprobs, rtol=1e-5, atol=1e-8
      )
      chex.assert_trees_all_equal(grads.logprobs[8:], 0 * grads.logprobs[8:])
