"""CANON as a method: what splits a group, what mu follows."""

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts


def _gradient(config, rollout):
  scores = rollouts.make_scores(rollout)
  return contract.evaluate(config.build(), scores, rollout)[2].logprobs


class CanonTest(chex.TestCase):
  def test_half_of_each_is_dr_grpo(self):
    rollout = rollouts.make_rollout(length=9)
    knobs = {"clip_high": 0.28, "max_length": 5}
    for metric in ("entropy", "length"):
      chex.assert_trees_all_close(
        _gradient(
          methods.Canon(metric=metric, mu=0.5, dual_clip=99.0, max_length=5),
          rollout,
        ),
        _gradient(methods.DrGrpo(**knobs), rollout),
        atol=1e-6,
      )

  def test_lengths_are_own_tokens_and_short_ones_are_favoured(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(rewards=jnp.ones(8))
    method = methods.Canon(metric="length", alpha=0.9).build()
    credit = np.asarray(method.advantage(rollout)).reshape(2, 4)
    lengths = np.asarray(rollout.mask.sum(axis=1)).reshape(2, 4)
    for row, own in zip(credit, lengths, strict=True):
      order = np.argsort(own, kind="stable")
      np.testing.assert_allclose(row[order[:2]], 0.1, rtol=1e-5)
      np.testing.assert_allclose(row[order[2:]], -0.1, rtol=1e-5)

  def _mu(self, config, steps=1):
    method = config.build()
    rollout, state = rollouts.make_rollout(), method.transform.init()
    for _ in range(steps):
      shown, state = method.transform.update(rollout, state)
    return float(shown.extras["mu"]), float(rollout.rewards.mean())

  def test_mu_follows_the_accuracy_either_way(self):
    mu, mean = self._mu(methods.Canon(schedule="accuracy"))
    self.assertAlmostEqual(mu, mean, places=6)
    config = methods.Canon(schedule="accuracy", order="inter_first")
    self.assertAlmostEqual(self._mu(config)[0], 1.0 - mean, places=6)

  def test_mu_follows_the_step_either_way(self):
    knobs = {"schedule": "cosine", "warmup": 2, "total": 8, "cycles": 2}
    # The weight of intra: 0.3, 0.6, then 0.6, 0.45, 0.15 and 0.6 again.
    for steps, intra in ((1, 0.3), (2, 0.6), (3, 0.6), (4, 0.45), (6, 0.6)):
      mu, _ = self._mu(methods.Canon(**knobs), steps)
      self.assertAlmostEqual(mu, 1.0 - intra, places=6)
    for steps, inter in ((1, 0.5), (3, 1.0), (4, 0.85), (6, 1.0)):
      mu, _ = self._mu(methods.Canon(order="inter_first", **knobs), steps)
      self.assertAlmostEqual(mu, inter, places=6)
