"""The composed objective: metrics and penalties."""

import chex
import jax
import numpy as np

from jaxrl_llm.methods import base
from jaxrl_llm.objectives import penalties, policy, surrogates, weighting
from jaxrl_llm.testing import rollouts


def _clipped(tokens):
  return surrogates.clipped_surrogate(tokens.log_ratio, tokens.advantages)


def _setting(weigh=weighting.token_mean):
  rollout = rollouts.make_rollout()
  scores = rollouts.make_scores(rollout, scale=0.5)
  advantages = base.per_token(rollout.rewards - 0.5, rollout.mask)
  return scores, rollout, advantages, weigh(rollout.mask, rollout.weights)


class MetricsTest(chex.TestCase):
  def test_are_means_over_tokens(self):
    scores, rollout, advantages, weights = _setting()
    objective = policy.policy_objective(surrogate=_clipped)
    loss, metrics = objective(scores, rollout, advantages, weights)
    mask = np.asarray(rollout.mask)
    d = np.asarray(scores.logprobs - rollout.old_logprobs)[mask]
    cut = np.asarray(advantages)[mask]
    low, high = (np.exp(d) < 0.8) & (cut < 0), (np.exp(d) > 1.2) & (cut > 0)
    expected = {
      "approx_kl": (np.exp(d) - 1 - d).mean(),
      "entropy": np.asarray(scores.entropy)[mask].mean(),
      "clip_fraction_low": low.mean(),
      "clip_fraction_high": high.mean(),
      "clip_fraction": (low | high).mean(),
      "token_weight": 1.0,
      "loss": loss,
      "policy_loss": loss,
    }
    self.assertEqual(set(metrics), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    self.assertGreater(metrics["clip_fraction"], 0.0)

  def test_token_averages_undo_the_scale_of_fixed_length(self):
    fixed = lambda m, w: weighting.fixed_length(m, w, length=600)  # noqa: E731
    args = _setting(fixed)
    scores, rollout = args[:2]
    objective = policy.policy_objective(surrogate=_clipped)
    loss, metrics = objective(*args)
    averages = policy.token_averages(metrics)
    entropy = np.asarray(scores.entropy)[np.asarray(rollout.mask)].mean()
    np.testing.assert_allclose(averages["entropy"], entropy, rtol=1e-5)
    self.assertEqual(float(averages["loss"]), float(loss))

  def test_have_no_gradient(self):
    scores, rollout, advantages, weights = _setting()
    objective = policy.policy_objective(surrogate=_clipped)

    def total(scores):
      _, metrics = objective(scores, rollout, advantages, weights)
      return sum(metrics.values())

    grads = jax.grad(total)(scores)
    np.testing.assert_array_equal(grads.logprobs, 0.0)


class PenaltiesTest(chex.TestCase):
  def test_are_added_with_their_coefficient_and_named(self):
    args = _setting()
    scores, rollout, _, weights = args
    plain = policy.policy_objective(surrogate=_clipped)
    penalised = policy.policy_objective(
      surrogate=_clipped,
      penalties=(
        penalties.Penalty("reference_kl", 0.5, penalties.reference_kl),
        penalties.Penalty("negative_entropy", 2.0, penalties.negative_entropy),
      ),
    )
    loss, metrics = penalised(*args)
    kl = (weights * penalties.reference_kl(scores, rollout)).sum()
    bonus = (weights * scores.entropy).sum()
    np.testing.assert_allclose(
      loss, plain(*args)[0] + 0.5 * kl - 2.0 * bonus, rtol=1e-5
    )
    np.testing.assert_allclose(metrics["reference_kl"], kl, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy_loss"], plain(*args)[0])
