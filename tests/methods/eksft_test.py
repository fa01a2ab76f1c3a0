"""EKSFT as a method: what it reduces to, its edges, its coefficients."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import state, step


def _evaluate(config, rollout=None, scale=0.2, **changes):
  rollout = rollout or rollouts.make_rollout()
  scores = rollouts.make_scores(rollout, scale=scale).replace(**changes)
  return contract.evaluate(config.build(), scores, rollout)


class EksftTest(chex.TestCase):
  @parameterized.parameters(False, True)
  def test_a_ratio_of_zero_is_sft(self, official):
    config = methods.Eksft(ratio=0.0, official=official, adjust=official)
    ours, plain = _evaluate(config), _evaluate(methods.Sft())
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(ours[2].logprobs, plain[2].logprobs, rtol=1e-6)
    np.testing.assert_array_equal(ours[2].entropy, 0.0)

  def test_sft_is_the_mean_over_tokens(self):
    rollout = rollouts.make_rollout()
    loss, metrics, grads = _evaluate(methods.Sft(), rollout)
    scores = rollouts.make_scores(rollout)
    mean = -scores.logprobs[rollout.mask].mean()
    np.testing.assert_allclose(loss, mean, rtol=1e-6)
    np.testing.assert_allclose(metrics["cross_entropy"], mean, rtol=1e-6)
    tokens = int(rollout.mask.sum())
    np.testing.assert_allclose(grads.logprobs[rollout.mask], -1 / tokens)

  def test_the_gradient_of_each_term_is_where_it_belongs(self):
    config = methods.Eksft(ratio=0.3, lam_h=0.5, lam_k=0.25)
    loss, metrics, grads = _evaluate(config)
    dropped = (grads.entropy != 0) | (grads.reference_kl != 0)
    self.assertFalse(bool((dropped & (grads.logprobs != 0)).any()))
    # Means over k tokens of H / ln V and of K, with their coefficients.
    np.testing.assert_allclose(
      grads.entropy.sum(), -0.5 / np.log(16), rtol=1e-5
    )
    np.testing.assert_allclose(grads.reference_kl.sum(), 0.25, rtol=1e-5)
    np.testing.assert_allclose(grads.logprobs.sum(), -1.0, rtol=1e-5)
    total = (
      metrics["kept_cross_entropy"]
      - 0.5 * metrics["normalized_entropy"]
      + 0.25 * metrics["selected_kl"]
    )
    np.testing.assert_allclose(loss, total, rtol=1e-6)
    self.assertBetween(float(metrics["normalized_entropy"]), 0.0, 1.0)
    self.assertGreaterEqual(float(metrics["selected_kl"]), 0.0)

  def test_where_all_is_left_out_nothing_is_imitated(self):
    loss, metrics, grads = _evaluate(methods.Eksft(ratio=1.0))
    chex.assert_tree_all_finite((loss, metrics, grads))
    np.testing.assert_array_equal(grads.logprobs, 0.0)
    self.assertEqual(float(metrics["kept_cross_entropy"]), 0.0)
    self.assertGreater(float(metrics["cross_entropy"]), 0.0)

  def test_at_its_reference_it_pays_no_kl(self):
    zero = jnp.zeros(rollouts.make_rollout().mask.shape)
    _, metrics, grads = _evaluate(methods.Eksft(), reference_kl=zero)
    np.testing.assert_array_equal(grads.reference_kl, 0.0)
    self.assertEqual(float(metrics["selected_kl"]), 0.0)

  def test_official_leaves_out_the_token_before_and_never_the_last(self):
    rollout = rollouts.make_rollout()
    count = rollout.mask.sum(axis=1)
    for ratio in (0.3, 1.0):
      config = methods.Eksft(official=True, ratio=ratio)
      grads = _evaluate(config, rollout)[2]
      chosen = np.asarray((grads.entropy != 0) | (grads.reference_kl != 0))
      dropped = np.asarray(rollout.mask & (grads.logprobs == 0))
      np.testing.assert_array_equal(dropped[:, :-1], chosen[:, 1:])
      last = np.asarray(grads.logprobs)[np.arange(8), np.asarray(count) - 1]
      self.assertTrue((last < 0).all())

  def test_methods_say_that_they_are_supervised(self):
    kinds = {n: c().build().supervised for n, c in methods.METHODS.items()}
    self.assertEqual({n for n, s in kinds.items() if s}, {"sft", "eksft"})


def _coefficients(config, steps=3):
  """lam_h and lam_k of the state after some steps; None without a state."""
  method, rollout = config.build(), rollouts.make_rollout()
  fake = rollouts.make_scores(rollout)

  def score(params, rollout, reference):
    del reference
    return fake.replace(logprobs=fake.logprobs + params["shift"])

  train_step = jax.jit(
    step.make_train_step(score, method, optax.sgd(0.1), old_logprobs="sampler")
  )
  params = {"shift": jnp.zeros(())}
  now = state.init_state(params, method, optax.sgd(0.1))
  losses = []
  for _ in range(steps):
    now, metrics = train_step(now, rollout, params)
    losses.append(metrics["loss"])
    assert not any("gap" in name for name in metrics)
  return now.method_state, metrics


class AdjustmentTest(chex.TestCase):
  def test_it_lasts_from_step_to_step(self):
    found, metrics = _coefficients(methods.Eksft(adjust=True))
    e, r = metrics["normalized_entropy"], metrics["selected_kl"]
    up = 1.05 if e < 0.5 else 0.95, 1.05 if r > 2 else 0.95
    np.testing.assert_allclose(found["lam_h"], 0.05 * up[0] ** 3, rtol=1e-5)
    np.testing.assert_allclose(found["lam_k"], 0.05 * up[1] ** 3, rtol=1e-5)

  def test_that_of_the_released_code_does_not(self):
    config = methods.Eksft(adjust=True, official=True)
    found, metrics = _coefficients(config)
    self.assertEmpty(jax.tree.leaves(found))
    e, r = metrics["normalized_entropy"], metrics["selected_kl"]
    lams = 0.05 * (1.05 if e < 0.5 else 0.95), 0.05 * (1.05 if r > 2 else 0.95)
    total = metrics["kept_cross_entropy"] - lams[0] * e + lams[1] * r
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
