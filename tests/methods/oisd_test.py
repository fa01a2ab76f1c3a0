"""OISD: its divergence, its signs, what it is without its terms."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.objectives import alignment, divergence, weighting
from jaxrl_llm.testing import contract, rollouts


def _distributions(seed=0, shape=(4, 6, 9)):
  return [
    jax.nn.softmax(4.0 * jax.random.normal(key, shape))
    for key in jax.random.split(jax.random.key(seed))
  ]


class JensenShannonTest(chex.TestCase):
  def test_is_bounded_and_symmetric(self):
    p, q = _distributions()
    jsd = divergence.jensen_shannon(p, q)
    np.testing.assert_array_equal(jsd, divergence.jensen_shannon(q, p))
    self.assertTrue((jsd > 0).all() and (jsd < np.log(2)).all())
    apart = divergence.jensen_shannon(jnp.eye(2)[:1], jnp.eye(2)[1:])
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-6)

  def test_equal_ones_have_none_and_no_gradient(self):
    p, _ = _distributions()
    value, grad = jax.value_and_grad(
      lambda p, q: divergence.jensen_shannon(p, q).sum()
    )(p, p)
    self.assertEqual(float(value), 0.0)
    np.testing.assert_array_equal(grad, 0.0)

  def test_the_gradient_is_that_of_the_equation(self):
    logits, (_, q) = (
      jax.random.normal(jax.random.key(3), (9,)),
      _distributions(),
    )

    def plain(z):
      p = jax.nn.softmax(z)
      m = 0.5 * (p + q[0, 0])
      kl = lambda x: (x * (jnp.log(x) - jnp.log(m))).sum()  # noqa: E731
      return 0.5 * (kl(p) + kl(q[0, 0]))

    ours = lambda z: divergence.jensen_shannon(  # noqa: E731
      jax.nn.softmax(z), q[0, 0]
    )
    np.testing.assert_allclose(
      jax.grad(ours)(logits), jax.grad(plain)(logits), atol=1e-6
    )

  @parameterized.parameters(1e-45, 1.2e-38, 3e-38, 1e-30)
  def test_the_smallest_probabilities_are_no_trap(self, least):
    p = jnp.array([[1.0, least, 0.0, least]])
    q = jnp.array([[1.0, 0.0, least, least]])
    value, grad = jax.value_and_grad(
      lambda p: jax.jit(divergence.jensen_shannon)(p, q).sum()
    )(p)
    np.testing.assert_allclose(value, 0.0, atol=1e-29)
    chex.assert_tree_all_finite(grad)

  def test_outcomes_without_mass_are_not_noticed(self):
    p, q = _distributions()
    wide = [jnp.pad(x, ((0, 0), (0, 0), (2, 3))) for x in (p, q)]
    np.testing.assert_allclose(
      divergence.jensen_shannon(*wide),
      divergence.jensen_shannon(p, q),
      rtol=1e-5,
    )
    grads = jax.grad(lambda x: divergence.jensen_shannon(x, wide[1]).sum())
    chex.assert_tree_all_finite(grads(wide[0]))


class SignedDivergenceTest(chex.TestCase):
  def _arguments(self):
    rollout = rollouts.make_rollout()
    apart = divergence.jensen_shannon(*_distributions(shape=(8, 6, 9)))
    credit = jax.random.normal(jax.random.key(5), (8, 6))
    share = weighting.token_mean(rollout.mask, rollout.weights)
    return apart, credit, share

  def test_is_bounded_and_turns_with_the_credit(self):
    apart, credit, share = self._arguments()
    loss = alignment.signed_divergence(apart, credit, share)
    bound = np.log(2) * (share * jnp.abs(credit)).sum()
    self.assertLessEqual(abs(float(loss)), float(bound))
    np.testing.assert_allclose(
      alignment.signed_divergence(apart, -credit, share), -loss, rtol=1e-6
    )

  def test_without_tokens_it_is_zero(self):
    apart, credit, share = self._arguments()
    nothing = alignment.signed_divergence(
      apart, jnp.full_like(credit, jnp.nan), jnp.zeros_like(share)
    )
    self.assertEqual(float(nothing), 0.0)


class OisdTest(chex.TestCase):
  def _evaluate(self, config, rewards=None):
    rollout = rollouts.make_rollout()
    if rewards is not None:
      rollout = rollout.replace(rewards=rewards)
    return contract.evaluate(
      config.build(), rollouts.make_scores(rollout), rollout
    )

  def test_its_terms_are_means_over_tokens_times_the_credit(self):
    rollout = rollouts.make_rollout()
    scores = rollouts.make_scores(rollout)
    plain = self._evaluate(methods.Grpo())
    credit = methods.Grpo().build().advantage(rollout)[:, None]
    for name, knobs in (
      ("layer_jsd", {"lam_attn": 0.0, "lam_think": 0.5}),
      ("attention_jsd", {"lam_attn": 0.5, "lam_think": 0.0}),
    ):
      loss, metrics, grads = self._evaluate(methods.Oisd(**knobs))
      share = np.asarray(rollout.mask) / rollout.mask.sum()
      term = (share * credit * getattr(scores, name)).sum()
      np.testing.assert_allclose(loss - plain[0], 0.5 * term, atol=1e-6)
      np.testing.assert_allclose(
        getattr(grads, name), 0.5 * share * credit, atol=1e-7
      )
      np.testing.assert_allclose(grads.logprobs, plain[2].logprobs)
      self.assertIn(name, metrics)

  def test_without_terms_it_is_the_method(self):
    bare = methods.Oisd(lam_think=0.0, lam_attn=0.0)
    self.assertEqual(bare.build().needs, methods.Grpo().build().needs)
    chex.assert_trees_all_equal(
      self._evaluate(bare), self._evaluate(methods.Grpo())
    )

  def test_groups_of_one_reward_move_no_layer(self):
    grads = self._evaluate(methods.Oisd(), jnp.full(8, 0.9))[2]
    np.testing.assert_array_equal(grads.layer_jsd, 0.0)
    np.testing.assert_array_equal(grads.attention_jsd, 0.0)

  @parameterized.parameters(
    ({"lam_think": -1.0}, "lam_think must be 0 or more"),
    ({"lam_attn": float("inf")}, "lam_attn must be 0 or more and finite"),
    ({"layer": -1}, "layer must be 0 or more, got -1"),
  )
  def test_what_cannot_be_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(methods.Oisd(), **knobs).build()
