"""HDPO: who has credit for economy, and what the second loss is a mean of."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.advantages import economy
from jaxrl_llm.objectives import surrogates, weighting
from jaxrl_llm.rollout import markers
from jaxrl_llm.testing import contract, rollouts

RIGHT = jnp.array([1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], bool)
TOOLS = jnp.array([0, 2, 5, 1, 1, 0, 2, 3, 1, 1, 1, 1, 0, 1, 2, 3])


def _economy(right=RIGHT, tools=TOOLS, **knobs):
  rewards = economy.tool_rewards(right, tools)
  found = economy.economy_credit(rewards, **({"group_size": 4} | knobs))
  return np.asarray(found).reshape(4, -1)


class CreditTest(chex.TestCase):
  def test_it_sums_to_zero_over_the_right_answers(self):
    np.testing.assert_allclose(_economy().sum(axis=1), 0.0, atol=1e-6)

  def test_fewer_tools_have_more_credit(self):
    self.assertTrue((np.diff(_economy()[0, :3]) < 0).all())

  def test_what_wrong_answers_cost_does_not_matter(self):
    other = jnp.where(RIGHT, TOOLS, 7)
    np.testing.assert_array_equal(_economy(), _economy(tools=other))
    self.assertEqual(_economy()[0, 3], 0.0)

  def test_fewer_than_two_right_answers_are_not_compared(self):
    np.testing.assert_array_equal(_economy()[[1, 3]], 0.0)

  def test_equally_cheap_right_answers_have_none(self):
    np.testing.assert_array_equal(_economy()[2], 0.0)

  def test_a_dropped_row_is_not_compared_with(self):
    weights = jnp.ones(16).at[0].set(0.0)
    found = _economy(weights=weights)[0]
    self.assertEqual(found[0], 0.0)
    np.testing.assert_allclose(found[1:3], [2**-0.5, -(2**-0.5)], rtol=1e-4)

  def test_without_a_std_it_is_the_distance_to_the_mean(self):
    mean = (1 + 1 / 3 + 1 / 6) / 3
    np.testing.assert_allclose(
      _economy(scale=False)[0, :3],
      np.array([1, 1 / 3, 1 / 6]) - mean,
      rtol=1e-5,
    )

  def test_groups_of_one_keep_their_reward_and_have_no_economy(self):
    rewards = jnp.array([1.0, 0.1])
    knobs = {"group_size": 1, "eps": 0.25}
    found = economy.accuracy_credit(rewards, **knobs)
    np.testing.assert_allclose(found, rewards / 1.25)
    np.testing.assert_array_equal(economy.economy_credit(rewards, **knobs), 0.0)


class HdpoTest(chex.TestCase):
  def _rollout(self, tools=TOOLS):
    rollout = rollouts.make_rollout(groups=4)
    formed = (jnp.arange(16) % 3 > 0).astype(jnp.float32)
    parts = jnp.stack([RIGHT.astype(jnp.float32), formed], axis=1)
    extras = {"reward_components": parts, "n_tools": tools}
    return rollout.replace(extras=extras), 0.9 * RIGHT + 0.1 * formed

  def _evaluate(self, config, rollout):
    scores = rollouts.make_scores(rollout)
    return contract.evaluate(config.build(), scores, rollout)

  def _grpo(self, rollout, rewards):
    scores = rollouts.make_scores(rollout)
    plain = rollout.replace(rewards=rewards)
    credit = methods.Grpo(eps=1e-6).build().advantage(plain)[:, None]
    weights = weighting.token_mean(rollout.mask, rollout.weights)

    def loss(logprobs):
      gap = jnp.where(rollout.mask, logprobs - rollout.old_logprobs, 0.0)
      each, _ = surrogates.dual_clip_surrogate(gap, credit * rollout.mask)
      return (weights * each).sum()

    return jax.value_and_grad(loss)(scores.logprobs)

  def test_without_the_second_channel_it_is_grpo(self):
    rollout, rewards = self._rollout()
    loss, _, grads = self._evaluate(methods.Hdpo(w_tool=0.0), rollout)
    expected, slope = self._grpo(rollout, rewards)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grads.logprobs, slope, atol=1e-6)

  def test_nor_where_no_prompt_has_two_right_answers(self):
    rollout, _ = self._rollout()
    only = jnp.arange(16) % 4 == 0
    parts = jnp.stack([only, only], axis=1).astype(jnp.float32)
    extras = rollout.extras | {"reward_components": parts}
    rollout = rollout.replace(extras=extras)
    loss, metrics, grads = self._evaluate(methods.Hdpo(), rollout)
    expected, slope = self._grpo(rollout, only.astype(jnp.float32))
    self.assertEqual(float(metrics["tool_loss"]), 0.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grads.logprobs, slope, atol=1e-6)

  def test_accuracy_is_blind_to_tools(self):
    method = methods.Hdpo().build()
    some, _ = self._rollout()
    none, _ = self._rollout(tools=jnp.zeros_like(TOOLS))
    np.testing.assert_array_equal(
      method.advantage(some), method.advantage(none)
    )

  def test_the_second_loss_is_a_mean_over_its_own_rows(self):
    rollout, _ = self._rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    _, metrics, grads = contract.evaluate(
      methods.Hdpo(w_acc=0.0, w_tool=1.0).build(), scores, rollout
    )
    credit = _economy().reshape(-1)
    mask = np.asarray(rollout.mask) & (credit != 0)[:, None]
    expected = -1.0 * mask * credit[:, None] / mask.sum()
    np.testing.assert_allclose(grads.logprobs, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["tool_loss"], expected.sum(), rtol=1e-4)

  def test_a_mean_over_sequences_has_the_same_rows(self):
    rollout, _ = self._rollout()
    scores = rollouts.make_scores(rollout, scale=0.0)
    config = methods.Hdpo(w_acc=0.0, w_tool=1.0, aggregation="sequence_mean")
    grads = contract.evaluate(config.build(), scores, rollout)[2].logprobs
    credit = _economy().reshape(-1)
    np.testing.assert_allclose(
      grads.sum(axis=1), -credit / (credit != 0).sum(), atol=1e-6
    )


class _Groups:
  """Texts and nothing else."""

  def __init__(self, texts):
    self.samples, self.extras = self, {}
    self.texts = texts

  def replace(self, extras):
    self.extras = extras
    return self


class _Sampler:
  tokenizer = None

  def sample(self):
    return _Groups(["a <t> b <t>", "", "<t"])


def test_the_marker_is_counted_in_each_text():
  plan = markers.count_marker("n_tools", r"<t>")
  found, _, metrics = plan.gather(_Sampler(), plan.init())
  np.testing.assert_array_equal(found.extras["n_tools"], [2, 0, 0])
  assert found.extras["n_tools"].dtype == plan.extras["n_tools"].dtype
  assert metrics["plan/n_tools"] == pytest.approx(2 / 3)
