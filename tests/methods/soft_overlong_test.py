"""Soft overlong around other methods: rewards, truncated rows, order."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.methods import base
from jaxrl_llm.testing import contract, rollouts

T = 6


def _rollout():
  """Eight rows of 1, 1, 2, ... 6, 6 tokens; the full ones were cut off."""
  lengths = jnp.array([1, 2, 5, 6, 1, 4, 6, 3])
  rollout = rollouts.make_rollout(length=T)
  return rollout.replace(
    mask=jnp.arange(T)[None] < lengths[:, None],
    finish_reason=jnp.where(
      lengths == T, types.FINISH_LENGTH, types.FINISH_STOP
    ),
    rewards=jnp.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
  )


def _before(config):
  """The rollout as the advantages and then the weighting see it."""
  method = config.build()
  rollout, _ = method.transform.update(_rollout(), method.transform.init())
  advantages = base.per_token(method.advantage(rollout), rollout.mask)
  return rollout, advantages, method.selection(rollout, advantages)


class SoftOverlongTest(chex.TestCase):
  def test_a_reward_falls_near_the_limit(self):
    rollout, _, _ = _before(methods.SoftOverlong(buffer=2, factor=0.5))
    np.testing.assert_array_equal(
      rollout.rewards, [0, 1, 0.75, 0.5, 0, 0, 0.5, 1]
    )

  @parameterized.parameters((0.5, 0.5), (0.0, 0.0), (-0.5, -0.5), (1.0, 1.0))
  def test_what_was_cut_off_has_its_reward_lowered_or_set(self, coef, expected):
    config = methods.SoftOverlong(factor=0.0, stop_properly=coef)
    rollout, _, _ = _before(config)
    cut = np.asarray(rollout.finish_reason) == types.FINISH_LENGTH
    np.testing.assert_array_equal(rollout.rewards[cut], expected)
    np.testing.assert_array_equal(
      rollout.rewards[~cut], _rollout().rewards[~cut]
    )

  def test_filtered_from_the_loss_a_row_still_counts_in_the_baseline(self):
    plain, credit, _ = _before(methods.SoftOverlong(factor=0.0))
    kept, same, after = _before(methods.SoftOverlong(factor=0.0, filter="loss"))
    chex.assert_trees_all_equal((kept, same), (plain, credit))
    np.testing.assert_array_equal(after.weights, [1, 1, 1, 0, 1, 1, 0, 1])

  def test_filtered_as_a_row_it_leaves_the_baseline_too(self):
    config = methods.SoftOverlong(
      method=methods.DrGrpo(), factor=0.0, filter="rows"
    )
    rollout, credit, after = _before(config)
    np.testing.assert_array_equal(rollout.weights, after.weights)
    np.testing.assert_allclose(credit[1, 0], 1 - 2 / 3, rtol=1e-6)
    np.testing.assert_array_equal(credit[3], 0.0)

  @parameterized.parameters("loss", "rows")
  def test_a_filtered_row_has_no_gradient_and_leaves_the_denominator(self, how):
    method = methods.SoftOverlong(
      method=methods.Grpo(entropy_coef=0.1),
      factor=0.0,
      filter=how,
    ).build()
    rollout = _rollout()
    scores = rollouts.make_scores(rollout)
    _, _, grads = contract.evaluate(method, scores, rollout)
    cut = rollout.finish_reason == types.FINISH_LENGTH
    np.testing.assert_array_equal(grads.logprobs[cut], 0.0)
    np.testing.assert_array_equal(grads.entropy[cut], 0.0)
    self.assertGreater(jnp.abs(grads.entropy[~cut]).max(), 0.0)

  def test_the_penalty_comes_before_the_method_drops_equal_groups(self):
    rollout, _, _ = _before(
      methods.SoftOverlong(method=methods.Dapo(), buffer=5)
    )
    np.testing.assert_array_equal(rollout.weights, 1.0)

  def test_it_leaves_the_plan_and_the_needs_of_the_method(self):
    inner = methods.DynamicSampling(method=methods.Grpo(entropy_coef=0.1))
    outer = methods.SoftOverlong(method=inner).build()
    self.assertEqual(outer.needs, inner.build().needs)
    self.assertEqual(tuple(outer.plan.extras), ("stale",))
