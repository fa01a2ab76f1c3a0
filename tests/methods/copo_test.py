"""COPO as a method: the two losses, and how answers are read."""

import types as namespaces

import chex
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import contract, rollouts


def _evaluated(config, rollout, scale=1.0):
  scores = rollouts.make_scores(rollout, scale=scale)
  return contract.evaluate(config.build(), scores, rollout)


class CopoTest(chex.TestCase):
  def test_without_the_global_loss_it_is_dual_clip(self):
    rollout = rollouts.make_rollout()
    found = _evaluated(methods.Copo(blend="no_global"), rollout)
    dual = _evaluated(methods.DualClip(eps=1e-6), rollout)
    chex.assert_trees_all_close(found, dual, rtol=1e-6)

  def test_all_wrong_learns_where_another_prompt_does_better(self):
    rollout = rollouts.make_rollout()
    rewards = rollout.rewards.at[:4].set(0.0)
    grads = _evaluated(
      methods.Copo(), rollout.replace(rewards=rewards), scale=0.0
    )[2].logprobs
    self.assertTrue(bool((grads[:4].sum(axis=1) > 0).all()))
    right = np.asarray(rewards) > 0
    self.assertTrue(bool((grads.sum(axis=1)[right] < 0).all()))

  def test_the_loss_is_the_blend_of_both(self):
    rollout = rollouts.make_rollout()
    half = methods.Copo(blend="only_soft", k=0.0)
    parts = [
      _evaluated(methods.Copo(blend=blend), rollout)
      for blend in ("only_global", "no_global")
    ]
    expected = 0.5 * (parts[0][0] + parts[1][0])
    chex.assert_trees_all_close(
      _evaluated(half, rollout)[0], expected, rtol=1e-5
    )

  def test_groups_of_one_learn_between_prompts(self):
    rollout = rollouts.make_rollout().replace(group_size=1)
    out = _evaluated(methods.Copo(blend="only_global"), rollout, scale=0.0)
    chex.assert_tree_all_finite(out)
    grads = out[2].logprobs.sum(axis=1)
    np.testing.assert_array_equal(grads < 0, rollout.rewards > 0)


class AnswersTest(chex.TestCase):
  def _ids(self, texts, **knobs):
    plan = methods.Copo(**knobs).build().plan
    self.assertEqual(tuple(plan.extras), ("answer_ids",))
    seen = []

    class Found:
      samples = namespaces.SimpleNamespace(texts=texts)
      group_size = 3
      extras = {}

      def replace(self, extras):
        seen.append(extras)
        return self

    sampler = namespaces.SimpleNamespace(sample=Found, tokenizer=None)
    plan.gather(sampler, plan.init())
    return seen[0]["answer_ids"]

  def test_equal_answers_have_one_id_in_their_group(self):
    found = self._ids(["#### 7", "so 7", "8", "", "#### 1,000", "1000."])
    self.assertEqual(found.dtype, np.int32)
    np.testing.assert_array_equal(found, [0, 0, 1, 0, 1, 1])

  def test_the_reader_can_be_chosen(self):
    texts = ["7\n8", "7\n9", "8"] * 2
    found = self._ids(texts, answer="exact_integer")
    np.testing.assert_array_equal(found, [0, 0, 1] * 2)
    found = self._ids(texts, answer="text")
    np.testing.assert_array_equal(found, [0, 1, 2] * 2)
