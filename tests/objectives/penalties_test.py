"""KL terms: contract 9 by enumeration, extremes, official numbers."""

import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.objectives import penalties
from jaxrl_llm.testing import golden, rollouts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
V = 7


def _policies():
  """Logits of the policy, the sampling policy and the reference."""
  return jax.random.normal(jax.random.key(0), (3, V))


def _kl(logits, other):
  p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
  return (jnp.exp(p) * (p - q)).sum()


def _every_token(logits, old, ref):
  """A rollout of V rows of one token: the whole distribution, enumerated."""
  column = lambda x: jax.nn.log_softmax(x)[:, None]  # noqa: E731
  rollout = rollouts.make_rollout(groups=1, group_size=V, length=3)
  rollout = rollout.replace(
    mask=jnp.ones((V, 1), bool),
    old_logprobs=column(old),
    ref_logprobs=column(ref),
  )
  return types.Scores(logprobs=column(logits)), rollout


class ExpectedGradientTest(chex.TestCase):
  """Contract 9, with the expectation over a categorical taken exactly."""

  def _expected(self, estimator, logits, ref):
    def loss(logits):
      logp = jax.nn.log_softmax(logits)
      p = jax.lax.stop_gradient(jnp.exp(logp))
      return (p * estimator(logp - jax.nn.log_softmax(ref))).sum()

    return jax.value_and_grad(loss)(logits)

  def test_k1_is_unbiased_and_its_gradient_zero(self):
    logits, _, ref = _policies()
    value, grad = self._expected(penalties.k1, logits, ref)
    self.assertAlmostEqual(float(value), float(_kl(logits, ref)), places=5)
    chex.assert_trees_all_close(grad, jnp.zeros(V), atol=1e-6)

  def test_k2_has_the_gradient_of_the_kl(self):
    logits, _, ref = _policies()
    _, grad = self._expected(penalties.k2, logits, ref)
    chex.assert_trees_all_close(grad, jax.grad(_kl)(logits, ref), atol=1e-6)

  def test_k3_is_unbiased_with_the_gradient_of_the_other_direction(self):
    logits, _, ref = _policies()
    value, grad = self._expected(penalties.k3, logits, ref)
    self.assertAlmostEqual(float(value), float(_kl(logits, ref)), places=5)
    other = jax.grad(lambda x: _kl(ref, x))(logits)
    chex.assert_trees_all_close(grad, other, atol=1e-6)
    wrong = jnp.abs(grad - jax.grad(_kl)(logits, ref)).max()
    self.assertGreater(float(wrong), 0.05)

  @parameterized.named_parameters(("on_policy", True), ("off_policy", False))
  def test_reference_kl_is_exact_in_value_and_gradient(self, on_policy):
    logits, other, ref = _policies()
    old = logits if on_policy else other

    def loss(logits):
      scores, rollout = _every_token(logits, old, ref)
      sampled = jnp.exp(rollout.old_logprobs)
      return (sampled * penalties.reference_kl(scores, rollout)).sum()

    value, grad = jax.value_and_grad(loss)(logits)
    self.assertAlmostEqual(float(value), float(_kl(logits, ref)), places=5)
    chex.assert_trees_all_close(grad, jax.grad(_kl)(logits, ref), atol=1e-6)

  def test_reference_k3_has_the_gradient_of_the_other_direction(self):
    logits, _, ref = _policies()

    def loss(logits):
      scores, rollout = _every_token(logits, logits, ref)
      sampled = jax.lax.stop_gradient(jnp.exp(scores.logprobs))
      return (sampled * penalties.reference_k3(scores, rollout)).sum()

    other = jax.grad(lambda x: _kl(ref, x))(logits)
    chex.assert_trees_all_close(jax.grad(loss)(logits), other, atol=1e-6)


class ValuesTest(chex.TestCase):
  def test_k3_is_not_negative_and_zero_only_at_zero(self):
    d = jnp.linspace(-5.0, 5.0, 1001)
    values = penalties.k3(d)
    self.assertGreaterEqual(float(values.min()), 0.0)
    self.assertEqual(float(penalties.k3(jnp.zeros(()))), 0.0)
    self.assertGreater(float(values[0]), 100.0)

  @parameterized.parameters(-200.0, -50.0, 50.0, 200.0)
  def test_a_token_far_from_the_reference_is_finite(self, d):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    rollout = rollout.replace(ref_logprobs=scores.logprobs - d)

    def loss(logprobs):
      new = scores.replace(logprobs=logprobs)
      return penalties.reference_kl(new, rollout).sum()

    value, grad = jax.value_and_grad(loss)(scores.logprobs)
    chex.assert_tree_all_finite((value, grad))
    expected = jnp.where(rollout.mask, d, 0.0)
    chex.assert_trees_all_close(grad, expected, rtol=1e-5)

  def test_negative_entropy_is_masked(self):
    rollout = rollouts.make_rollout()
    entropy = jnp.where(rollout.mask, 1.5, jnp.nan)
    scores = types.Scores(logprobs=rollout.old_logprobs, entropy=entropy)
    actual = penalties.negative_entropy(scores, rollout)
    np.testing.assert_array_equal(actual, jnp.where(rollout.mask, -1.5, 0.0))

  def test_what_is_missing_is_named(self):
    rollout = rollouts.make_rollout().replace(ref_logprobs=None)
    scores = types.Scores(logprobs=rollout.old_logprobs)
    with self.assertRaisesRegex(ValueError, "'ref_logprobs' in `needs`"):
      penalties.reference_kl(scores, rollout)
    with self.assertRaisesRegex(ValueError, "'entropy' in `needs`"):
      penalties.negative_entropy(scores, rollout)


class GoldenTest(chex.TestCase):
  ESTIMATORS = {
    "kl": penalties.k1,
    "k1": penalties.k1,
    "mse": penalties.k2,
    "k2": penalties.k2,
    "k3": penalties.k3,
  }

  @parameterized.parameters(*golden.load(GOLDEN / "kl_verl.json"))
  def test_verl(self, case):
    mask = case.inputs["mask"] > 0
    ref = case.array("ref_logprobs")

    def values(logprobs):
      if case.name == "k3+":  # k3 straight through to k2: ours at ratio 1
        rollout = rollouts.make_rollout(length=mask.shape[1]).replace(
          mask=jnp.ones(mask.shape, bool),
          old_logprobs=case.array("logprobs"),
          ref_logprobs=ref,
        )
        return penalties.reference_kl(types.Scores(logprobs), rollout)
      return self.ESTIMATORS[case.name](logprobs - ref)

    logprobs = case.array("logprobs")
    golden.assert_close(values(logprobs), case.outputs["kl"])
    grad = jax.grad(lambda x: jnp.where(mask, values(x), 0.0).sum())(logprobs)
    golden.assert_close(grad, case.outputs["grad_of_masked_sum"])
