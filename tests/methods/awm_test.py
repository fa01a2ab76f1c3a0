"""AWM: the pre-training gradient, weighed, and the slow average it leans on."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import step_contract_test

from jaxrl_llm import methods
from jaxrl_llm.methods import awm
from jaxrl_llm.objectives import matching
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import state as states
from jaxrl_llm.training import step

CREDIT = jnp.array([1.5, -0.3, 0.0, -2.0])


def _draws(count, scale=0.5):
  return scale * jax.random.normal(jax.random.key(0), (count, 4))


def _loss(log_ratio, credit=CREDIT, **knobs):
  return matching.advantage_weighted_matching(log_ratio, credit, **knobs)[0]


class MatchingTest(chex.TestCase):
  @parameterized.product(form=("exp_first", "sum_first"), draws=(1, 3))
  def test_at_ratio_1_it_is_the_weighted_pretraining_loss(self, form, draws):
    start = jnp.zeros((draws, 4))
    loss, grads = jax.value_and_grad(lambda x: _loss(x, form=form).mean())(
      start
    )
    np.testing.assert_allclose(loss, -CREDIT.mean(), rtol=1e-6)
    expected = jnp.broadcast_to(-CREDIT / 4 / draws, (draws, 4))
    np.testing.assert_allclose(grads, expected, rtol=1e-6)

  def test_with_one_draw_both_forms_are_one(self):
    one = _draws(1)
    np.testing.assert_array_equal(
      _loss(one, form="exp_first"), _loss(one, form="sum_first")
    )

  def test_with_several_the_mean_of_exp_is_above_the_exp_of_the_mean(self):
    many, credit = _draws(6, scale=0.1), -jnp.ones(4)
    first, later = (
      _loss(many, credit, form=form) for form in ("exp_first", "sum_first")
    )
    self.assertTrue(bool((first > later).all()))
    np.testing.assert_allclose(later, jnp.exp(many.mean(axis=0)), rtol=1e-6)

  @parameterized.parameters(
    (0.75, 1.0, False),  # exp(0.75) = 2.1: beyond
    (0.65, 1.0, True),
    (-9.0, 1.0, True),
    (-9.0, -1.0, True),
    (9.0, -1.0, True),
  )
  def test_only_above_2_at_a_positive_advantage_it_stops(
    self, log_ratio, advantage, learns
  ):
    grad = jax.grad(lambda x: _loss(x[None, None], jnp.array([advantage]))[0])(
      jnp.float32(log_ratio)
    )
    self.assertEqual(bool(grad != 0), learns)


class AwmTest(chex.TestCase):
  def _gradient(self, config, rollout, scale=0.0):
    scores = rollouts.make_scores(rollout, scale=scale)
    loss, _, grads = contract.evaluate(config.build(), scores, rollout)
    return loss, np.asarray(grads.logprobs)

  def _rollout(self):
    rollout = rollouts.make_rollout()
    return rollout.replace(ref_logprobs=rollout.old_logprobs)

  @parameterized.parameters("mean", "sum")
  def test_equal_advantages_of_1_give_the_pretraining_gradient(self, score):
    rollout = self._rollout()
    method = methods.Awm(score=score).build()
    scores = rollouts.make_scores(rollout, scale=0.0)
    mask, count = rollout.mask, rollout.mask.sum(axis=1, keepdims=True)
    extras = {"shadow_logprobs": rollout.old_logprobs}
    rollout = rollout.replace(extras=extras)
    grads = jax.grad(
      lambda s: method.objective(
        s, rollout, mask * 1.0, method.weighting(mask, rollout.weights)
      )[0]
    )(scores).logprobs
    each = -1.0 * mask / (count if score == "mean" else 1)
    np.testing.assert_allclose(grads, each / len(mask), rtol=1e-5)

  def test_on_policy_it_is_the_weighted_one(self):
    rollout = self._rollout()
    config = methods.Awm(score="sum")
    loss, grads = self._gradient(config, rollout)
    credit = np.asarray(config.build().advantage(rollout))
    np.testing.assert_allclose(loss, -credit.mean(), atol=1e-6)
    expected = -credit[:, None] * np.asarray(rollout.mask) / 8
    np.testing.assert_allclose(grads, expected, rtol=1e-5, atol=1e-7)

  def test_advantages_are_clipped_and_scaled(self):
    rewards = jnp.array([0.0, 1.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0])
    rollout = self._rollout().replace(rewards=rewards)
    credit = methods.Awm().build().advantage(rollout)
    std = np.std(np.asarray(rewards)) + 1e-4
    np.testing.assert_allclose(credit[1], 0.75 / std / 5, rtol=1e-5)
    np.testing.assert_array_equal(credit[4:], 0.0)  # a prompt of equal ones
    tight = methods.Awm(adv_clip=0.1, adv_max=2.0).build().advantage(rollout)
    np.testing.assert_allclose(tight[:4], [-2.0, 2.0, -2.0, -2.0], rtol=1e-6)
    same = awm.clipped_and_scaled(credit, bound=float("inf"), to=1.0)
    np.testing.assert_array_equal(same, credit)

  def test_the_slow_average_holds_as_the_reference_does(self):
    rollout = rollouts.make_rollout()
    anchored = methods.Awm(beta=0.0, ema_beta=0.3)
    referred = methods.Awm(beta=0.3, ema_beta=0.0)
    self.assertIsNone(referred.build().shadow)
    self.assertEqual(anchored.build().needs, set())
    for ours, theirs in zip(
      self._gradient(anchored, rollout, scale=0.1),
      self._gradient(referred, rollout, scale=0.1),
      strict=True,
    ):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class ShadowTest(chex.TestCase):
  def test_it_follows_the_parameters_with_the_decay_of_its_step(self):
    method = methods.Awm(ema_rate=0.2, ema_max=0.3).build()
    run = step_contract_test.Run(method)
    rollout = step_contract_test._rollout(method)
    now, slow = run.start, run.start.params["table"]
    for decay in (0.0, 0.2, 0.3, 0.3):
      now, metrics = run.step(now, rollout, run.reference)
      slow = decay * slow + (1 - decay) * now.params["table"]
      np.testing.assert_allclose(now.shadow["table"], slow, atol=1e-6)
    self.assertEqual(run.traces, 1)
    # The policy's last step, seen from the average of those before.
    self.assertGreater(float(metrics["shadow_kl"]), 0.0)

  def test_the_first_rollout_is_scored_by_a_copy(self):
    method = methods.Awm().build()
    run = step_contract_test.Run(method)
    _, metrics = run(step_contract_test._rollout(method))
    self.assertEqual(float(metrics["shadow_kl"]), 0.0)

  def test_a_step_may_give_up_its_state(self):
    method = methods.Awm(beta=0.0).build()
    rollout = step_contract_test._rollout(method)
    optimizer = optax.sgd(0.5)
    train = step.make_train_step(
      step_contract_test._scorer(method), method, optimizer
    )
    state = states.init_state(step_contract_test._params(), method, optimizer)
    new, _ = jax.jit(train, donate_argnums=0)(state, rollout, None)
    chex.assert_tree_all_finite(new.shadow)
    self.assertTrue(state.shadow["table"].is_deleted())

  def test_it_is_of_what_is_trained(self):
    """An adapter beside frozen weights: both halves of the average meet."""
    method = methods.Awm(beta=0.0, ema_rate=0.3).build()
    rollout = step_contract_test._rollout(method)
    frozen = step_contract_test._params()
    added = {"table": jnp.zeros_like(frozen["table"])}
    optimizer = optax.sgd(0.5)
    knobs = {"score": step_contract_test._scorer(method), "method": method}
    plain = step.make_train_step(**knobs, optimizer=optimizer)
    beside = step.make_train_step(
      **knobs,
      optimizer=optimizer,
      attach=lambda base, own: jax.tree.map(jnp.add, base, own),
    )
    whole = states.init_state(frozen, method, optimizer)
    part = states.init_state(added, method, optimizer)
    for _ in range(3):
      whole, _ = plain(whole, rollout, None)
      part, _ = beside(part, rollout, frozen)
    np.testing.assert_allclose(
      frozen["table"] + part.shadow["table"], whole.shadow["table"], atol=1e-5
    )

  def test_others_have_none(self):
    method = methods.Grpo().build()
    state = states.init_state({"x": jnp.ones(2)}, method, optax.sgd(0.1))
    self.assertIsNone(state.shadow)
