"""KL and aggregation around any method: equalities, placement, controller."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.advantages import group, token
from jaxrl_llm.methods import kl_and_aggregation
from jaxrl_llm.objectives import penalties, weighting
from jaxrl_llm.testing import contract, rollouts
from jaxrl_llm.training import state, step

PLAIN = methods.Grpo(beta=0.0)


def _evaluate(config, rollout=None):
  rollout = rollouts.make_rollout() if rollout is None else rollout
  return contract.evaluate(
    config.build(), rollouts.make_scores(rollout), rollout
  )


class PlacementTest(chex.TestCase):
  @parameterized.parameters(*penalties.REFERENCE_KL)
  def test_in_the_loss_it_is_the_methods_own_term(self, name):
    around = methods.KlAndAggregation(beta=0.3, kl=name, aggregation="method")
    loss, metrics, grads = _evaluate(around)
    own = _evaluate(methods.Grpo(beta=0.3, kl=name))
    chex.assert_trees_all_close((loss, grads), (own[0], own[2]), rtol=1e-5)
    np.testing.assert_allclose(
      metrics["reference_kl"], own[1]["reference_kl"], rtol=1e-5
    )

  def test_in_the_reward_it_is_the_reward_of_rloo(self):
    rollout = rollouts.make_rollout()
    config = methods.KlAndAggregation(
      beta=0.3, placement="reward", aggregation="method"
    )
    shaped = token.kl_penalized_outcome(
      rollout.rewards,
      rollout.old_logprobs,
      rollout.ref_logprobs,
      rollout.mask,
      beta=0.3,
    )
    inside, outside = (
      _evaluate(config, rollout),
      _evaluate(PLAIN, rollout.replace(rewards=shaped)),
    )
    chex.assert_trees_all_close(inside[2], outside[2], rtol=1e-5, atol=1e-7)
    self.assertGreater(float(jnp.abs(inside[2].logprobs).max()), 1e-3)

  def test_groups_are_judged_uniform_by_their_own_reward(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(rewards=rollout.rewards.at[:4].set(1.0))
    config = methods.KlAndAggregation(
      method=methods.Dapo(), beta=0.3, placement="reward"
    )
    grads = _evaluate(config, rollout)[2].logprobs
    np.testing.assert_array_equal(grads[:4], 0.0)
    self.assertGreater(float(jnp.abs(grads[4:]).max()), 0.0)

  def test_rollout_weights_do_not_touch_the_kl(self):
    rollout = rollouts.make_rollout()
    config = methods.KlAndAggregation(beta=0.3)
    silent = rollout.replace(extras={"keep": jnp.zeros(rollout.mask.shape)})
    loss, metrics, _ = _evaluate(config, silent)
    self.assertEqual(float(metrics["policy_loss"]), 0.0)
    np.testing.assert_allclose(loss, 0.3 * metrics["reference_kl"], rtol=1e-6)


class AggregationTest(chex.TestCase):
  @parameterized.parameters(*kl_and_aggregation._AGGREGATIONS)
  def test_weights_are_those_of_the_name(self, name):
    rollout = rollouts.make_rollout()
    config = methods.KlAndAggregation(beta=0.0, aggregation=name)
    expected = getattr(weighting, name)(rollout.mask, rollout.weights)
    np.testing.assert_array_equal(
      config.build().weighting(rollout.mask, rollout.weights), expected
    )

  def test_rows_of_one_length_make_the_means_equal(self):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(mask=jnp.ones_like(rollout.mask))
    found = [
      _evaluate(methods.KlAndAggregation(beta=0.1, aggregation=name), rollout)[
        2
      ]
      for name in ("token_mean", "sequence_mean", "fixed_length")
    ]
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-5)
    chex.assert_trees_all_close(found[0], found[2], rtol=1e-5)

  @parameterized.parameters("sequence_mean", "sequence_sum", "fixed_length")
  def test_empty_rows_are_counted_or_not(self, name):
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(mask=rollout.mask.at[2].set(False))
    weigh = lambda count: (  # noqa: E731
      methods.KlAndAggregation(
        beta=0.0, aggregation=name, count_empty_rows=count
      )
      .build()
      .weighting(rollout.mask, rollout.weights)
    )
    chex.assert_trees_all_close(weigh(True) * 8, weigh(False) * 7, rtol=1e-6)

  def test_the_length_is_an_option(self):
    rollout = rollouts.make_rollout()
    config = methods.KlAndAggregation(
      beta=0.0, aggregation="fixed_length", length=128
    )
    weights = config.build().weighting(rollout.mask, rollout.weights)
    np.testing.assert_allclose(weights.max(), 1 / (8 * 128), rtol=1e-6)

  def test_without_kl_and_aggregation_the_method_is_itself(self):
    config = methods.KlAndAggregation(
      method=methods.Grpo(), beta=0.0, aggregation="method"
    )
    chex.assert_trees_all_equal(_evaluate(config), _evaluate(methods.Grpo()))

  @parameterized.parameters(*methods.BY_GRADIENT)
  def test_goes_around_every_method(self, name):
    inner = methods.METHODS[name]()
    if name == "kl_and_aggregation":
      inner = methods.KlAndAggregation(beta=0.0)
    alone = "ref_logprobs" in inner.build().needs
    config = methods.KlAndAggregation(method=inner, beta=0.0 if alone else 0.1)
    loss, _, grads = _evaluate(config)
    chex.assert_tree_all_finite((loss, grads.logprobs))


class ControllerTest(chex.TestCase):
  """In the train step: what is measured decides the next coefficient."""

  def _coefficients(self, **knobs):
    config = methods.KlAndAggregation(
      beta=0.5,
      coefficient="adaptive",
      horizon=100,
      aggregation="method",
      **knobs,
    )
    method = config.build()
    score = rollouts.scripted_score(method.needs)
    train = jax.jit(step.make_train_step(score, method, optax.sgd(0.0)))
    start, reference = ({"shift": jnp.full(6, x)} for x in (0.0, -0.5))
    now = state.init_state(start, method, optax.sgd(0.0))
    rollout = rollouts.make_rollout()
    found = []
    for _ in range(3):
      now, metrics = train(now, rollout, reference)
      found.append(float(metrics["kl_coef"]))
    return found, metrics

  @parameterized.parameters("loss", "reward")
  def test_a_kl_above_target_raises_it_by_rows_over_horizon(self, placement):
    found, metrics = self._coefficients(placement=placement, target=1e-6)
    self.assertGreater(float(metrics["reference_kl"]), 1e-4)
    grown = 1 + 0.2 * 8 / 100
    np.testing.assert_allclose(
      found, [0.5, 0.5 * grown, 0.5 * grown**2], rtol=1e-5
    )

  @parameterized.parameters("loss", "reward")
  def test_a_kl_below_target_lowers_it(self, placement):
    found, _ = self._coefficients(placement=placement, target=1e6)
    np.testing.assert_allclose(found[1] / found[0], 1 - 0.016, rtol=1e-5)

  def test_the_coefficient_is_the_one_in_the_loss(self):
    config = functools.partial(methods.KlAndAggregation, beta=0.3)
    chex.assert_trees_all_close(
      _evaluate(config())[::2],
      _evaluate(config(coefficient="adaptive"))[::2],
      rtol=1e-6,
    )


class WorkedExampleTest(chex.TestCase):
  def test_equal_rewards_leave_the_kl_to_decide(self):
    rollout = rollouts.make_rollout(groups=1, group_size=2)
    rollout = rollout.replace(
      rewards=jnp.ones(2),
      mask=jnp.zeros_like(rollout.mask).at[:, 0].set(True),
      old_logprobs=rollout.old_logprobs.at[:, 0].set(-1.0),
      ref_logprobs=rollout.ref_logprobs.at[:, 0].set(jnp.asarray([-2.0, -1.5])),
    )
    method = methods.KlAndAggregation(
      method=methods.DrGrpo(), beta=0.1, placement="reward"
    ).build()
    changed, _ = method.transform.update(rollout, method.transform.init())
    np.testing.assert_allclose(changed.rewards, [0.9, 0.95], rtol=1e-6)
    np.testing.assert_allclose(
      method.advantage(changed),
      group.group_centred(changed.rewards, group_size=2),
    )
