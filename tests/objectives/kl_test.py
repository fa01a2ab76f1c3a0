"""KL estimators: contract 9 by enumeration for each, extremes, gradients."""

import typing

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import kl, penalties
from jaxrl_llm.testing import rollouts

V = 7
PLAIN = {
  "k1": kl.k1,
  "k2": kl.k2,
  "k3": kl.k3,
  "abs": kl.absolute,
  "low_var_kl": kl.low_var_kl,
}
# What each is on-policy: is its value unbiased, whose gradient does it have.
# "own": of the expectation of its own value, which is no KL.
CLAIMED = {
  "exact": (True, "forward"),
  "k1": (True, "zero"),
  "k2": (False, "forward"),
  "abs": (False, "other"),
  "k3": (True, "reverse"),
  "low_var_kl": (True, "reverse"),
  "k1+": (True, "forward"),
  "abs+": (False, "forward"),
  "k3+": (True, "forward"),
  "low_var_kl+": (True, "forward"),
  "ratio_k1": (True, "forward"),
  "ratio_k2": (False, "own"),
  "ratio_k3": (True, "forward"),
  "ratio_abs": (False, "own"),
  "ratio_low_var_kl": (True, "forward"),
}
# The same off-policy: the others then see tokens that pi did not sample.
OFF_POLICY = {k: v for k, v in CLAIMED.items() if k == "exact" or "ratio" in k}


def _policies():
  """Logits of the policy, the sampling policy and the reference."""
  return jax.random.normal(jax.random.key(0), (3, V))


def _divergence(logits, other):
  p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
  return (jnp.exp(p) * (p - q)).sum()


def _expected(name, logits, old, ref):
  """Value and gradient in expectation over tokens that `old` sampled."""
  column = lambda x: jax.nn.log_softmax(x)[:, None]  # noqa: E731
  rollout = rollouts.make_rollout(groups=1, group_size=V, length=3)
  rollout = rollout.replace(
    mask=jnp.ones((V, 1), bool),
    old_logprobs=column(old),
    ref_logprobs=column(ref),
  )

  def loss(logits):
    scores = types.Scores(logprobs=column(logits))
    term = penalties.REFERENCE_KL[name](scores, rollout)
    return (jnp.exp(rollout.old_logprobs) * term).sum()

  return jax.value_and_grad(loss)(logits)


def _gradients(name, logits, ref):
  """The gradient that an estimator may have, by name."""

  def own(logits):
    logp = jax.nn.log_softmax(logits)
    plain = PLAIN.get(name.removeprefix("ratio_"), kl.k1)
    return (jnp.exp(logp) * plain(logp - jax.nn.log_softmax(ref))).sum()

  return {
    "zero": jnp.zeros(V),
    "forward": jax.grad(_divergence)(logits, ref),
    "reverse": jax.grad(lambda x: _divergence(ref, x))(logits),
    "own": jax.grad(own)(logits),
  }


class ExpectationTest(chex.TestCase):
  """Contract 9, with the expectation over a categorical taken exactly."""

  def test_every_estimator_is_tried(self):
    self.assertEqual(CLAIMED.keys(), penalties.REFERENCE_KL.keys())
    self.assertEqual(
      typing.get_args(base.KlName), tuple(penalties.REFERENCE_KL)
    )

  @parameterized.named_parameters(
    *((f"{k}_on_policy", k, True, *v) for k, v in CLAIMED.items()),
    *((f"{k}_off_policy", k, False, *v) for k, v in OFF_POLICY.items()),
  )
  def test_value_and_gradient_are_as_claimed(
    self, name, on_policy, unbiased, direction
  ):
    logits, other, ref = _policies()
    old = logits if on_policy else other
    value, grad = _expected(name, logits, old, ref)
    divergence = float(_divergence(logits, ref))
    if unbiased:
      self.assertAlmostEqual(float(value), divergence, places=5)
    else:
      self.assertGreater(abs(float(value) - divergence), 0.02)
    for other_name, gradient in _gradients(name, logits, ref).items():
      far = float(jnp.abs(grad - gradient).max())
      if other_name == direction:
        self.assertLess(far, 2e-6)
      elif direction == "other" or {other_name, direction} != {
        "own",
        "forward",
      }:
        self.assertGreater(far, 0.02)

  def test_k3_plus_is_off_the_mark_once_the_policy_has_moved(self):
    logits, other, ref = _policies()
    _, grad = _expected("k3+", logits, other, ref)
    forward = _gradients("k3+", logits, ref)["forward"]
    self.assertGreater(float(jnp.abs(grad - forward).max()), 0.02)

  def test_ratio_k3_is_the_exact_one_token_by_token(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout, scale=0.5)

    def run(name):
      def total(logprobs):
        new = scores.replace(logprobs=logprobs)
        return penalties.REFERENCE_KL[name](new, rollout).sum()

      return jax.value_and_grad(total)(scores.logprobs)

    chex.assert_trees_all_close(run("ratio_k3"), run("exact"), rtol=1e-4)


class ValuesTest(chex.TestCase):
  @parameterized.named_parameters(*((k, v) for k, v in PLAIN.items()))
  def test_zero_where_the_policies_agree(self, estimator):
    self.assertEqual(float(estimator(jnp.zeros(()))), 0.0)

  @parameterized.parameters("k2", "k3", "abs", "low_var_kl")
  def test_not_negative_and_zero_only_at_zero(self, name):
    d = jnp.linspace(-5.0, 5.0, 1001)
    values = np.asarray(PLAIN[name](d))
    self.assertTrue((values[np.asarray(d) != 0] > 0).all())

  def test_low_var_kl_is_k3_up_to_its_bound(self):
    d = jnp.linspace(-30.0, 30.0, 601)
    expected = jnp.minimum(kl.k3(d), 10.0)
    chex.assert_trees_all_close(kl.low_var_kl(d), expected)
    grad = jax.vmap(jax.grad(kl.low_var_kl))(d)
    np.testing.assert_array_equal(grad[kl.k3(d) > 10.0], 0.0)
    inside = kl.k3(d) < 10.0
    chex.assert_trees_all_close(grad[inside], -jnp.expm1(-d)[inside], atol=1e-5)

  def test_the_limit_of_k3_is_a_choice(self):
    far = jnp.asarray(-30.0)
    np.testing.assert_allclose(kl.k3(far), np.exp(20.0) - 31.0, rtol=1e-6)
    np.testing.assert_allclose(
      kl.k3(far, limit=40.0), np.exp(30.0) - 31.0, rtol=1e-6
    )

  @parameterized.product(
    name=list(penalties.REFERENCE_KL), d=[-200.0, -50.0, 50.0, 200.0]
  )
  def test_a_token_far_from_the_reference_is_finite(self, name, d):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    rollout = rollout.replace(ref_logprobs=scores.logprobs - d)

    def loss(logprobs):
      new = scores.replace(logprobs=logprobs)
      return penalties.REFERENCE_KL[name](new, rollout).sum()

    chex.assert_tree_all_finite(jax.value_and_grad(loss)(scores.logprobs))

  @chex.variants(with_jit=True, without_jit=True)
  def test_straight_through_takes_one_from_each(self):
    d = jnp.asarray([-0.5, 0.3, 2.0])
    run = self.variant(lambda d: kl.straight_through(kl.k3(d), kl.k2(d)))
    chex.assert_trees_all_close(run(d), kl.k3(d))
    grad = jax.grad(lambda d: run(d).sum())(d)
    chex.assert_trees_all_close(grad, d)  # of d^2 / 2

  def test_times_ratio_differentiates_the_ratio_too(self):
    d, gap = jnp.full((1, 1), 0.3), jnp.full((1, 1), -0.2)
    total = lambda x: kl.times_ratio(kl.k3(d + x), gap + x).sum()  # noqa: E731
    grad = jax.grad(total)(jnp.zeros((1, 1)))
    chex.assert_trees_all_close(grad, jnp.exp(gap) * d, rtol=1e-5)

  def test_a_worked_example(self):
    d = jnp.asarray(np.log(2.0))  # pi has twice the reference's probability
    for name, value in {
      "k1": 0.693147,
      "k2": 0.240227,
      "k3": 0.193147,
      "abs": 0.693147,
      "low_var_kl": 0.193147,
    }.items():
      np.testing.assert_allclose(PLAIN[name](d), value, rtol=1e-5)
