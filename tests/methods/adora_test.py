"""ADORA as a method: what its weight leaves as it is."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.testing import contract, rollouts


def _rollout():
  """Group 0 by hand, group 1 with its longest completion wrong."""
  lengths = jnp.array([9, 4, 6, 3, 5, 9, 9, 2])
  rewards = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
  rollout = rollouts.make_rollout(length=9)
  return rollout.replace(
    mask=jnp.arange(9)[None, :] < lengths[:, None],
    rewards=rewards,
    finish_reason=jnp.full(8, types.FINISH_STOP),
  )


def _credit(rollout, **knobs):
  return methods.Adora(**knobs).build().advantage(rollout)


class AdoraTest(chex.TestCase):
  def test_a_group_by_hand(self):
    found = _credit(_rollout())
    side = 0.8660240
    expected = [2 * side, -2 * side, -2 * side, 2 * side]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5)
    np.testing.assert_allclose(found[4:], [side, -side, -side, side], rtol=1e-5)

  def test_a_weight_of_1_is_grpo(self):
    rollout = _rollout()
    grpo = methods.Grpo(eps=1e-6, kl="k3", beta=0.001).build()
    scores = rollouts.make_scores(rollout)
    plain = contract.evaluate(grpo, scores, rollout)
    for knobs in (
      {"amplified": 1.0},
      {"weighting": "attenuate_vlm", "attenuated": 1.0},
      {"weighting": "attenuate_llm", "attenuated": 1.0},
    ):
      found = methods.Adora(**knobs).build()
      chex.assert_trees_all_close(
        contract.evaluate(found, scores, rollout), plain, rtol=1e-6
      )

  @parameterized.parameters(
    *(
      (weighting, baseline)
      for weighting in ("amplify", "attenuate_vlm", "attenuate_llm")
      for baseline in ("group_std", "group_mean", "loo")
    )
  )
  def test_a_group_keeps_its_signs_and_proportions(self, weighting, baseline):
    found = _credit(_rollout(), weighting=weighting, baseline=baseline)
    plain = _credit(_rollout(), amplified=1.0, baseline=baseline)
    ratio = np.asarray(found / plain).reshape(2, 4)
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(4, 1), rtol=1e-6)
    self.assertTrue((ratio > 0).all())
    self.assertNotAlmostEqual(ratio[0, 0], ratio[1, 0])
    sums = found.reshape(2, 4).sum(axis=1)
    np.testing.assert_allclose(sums, 0.0, atol=1e-6)

  def test_truncated_is_what_the_rollout_says(self):
    rollout = _rollout()
    cut = (
      jnp.full(8, types.FINISH_STOP)
      .at[jnp.array([5, 6])]
      .set(types.FINISH_LENGTH)
    )
    found = _credit(rollout.replace(finish_reason=cut))
    np.testing.assert_allclose(found[4:], 2 * _credit(rollout)[4:], rtol=1e-6)
