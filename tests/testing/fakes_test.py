"""Fakes are valid and repeatable; golden files are read as they say."""

import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.testing import golden, rollouts


class MakeRolloutTest(chex.TestCase):
  @parameterized.parameters((2, 4, 6), (1, 2, 3), (5, 3, 9))
  def test_is_a_valid_rollout(self, groups, group_size, length):
    rollout = rollouts.make_rollout(
      groups=groups, group_size=group_size, length=length
    )
    rows, mask = groups * group_size, np.asarray(rollout.mask)
    chex.assert_shape(
      [rollout.completions, rollout.old_logprobs, mask], (rows, length)
    )
    chex.assert_shape([rollout.rewards, rollout.weights], (rows,))
    self.assertTrue(mask.any(axis=1).all())
    self.assertFalse(mask[0].all())
    self.assertTrue((np.diff(mask.astype(int), axis=1) <= 0).all())
    full = np.asarray(rollout.finish_reason) == types.FINISH_LENGTH
    np.testing.assert_array_equal(full, mask.all(axis=1))
    grouped = np.asarray(rollout.rewards).reshape(groups, group_size)
    self.assertTrue((grouped.max(axis=1) > grouped.min(axis=1)).all())
    prompts = np.asarray(rollout.prompts).reshape(groups, group_size, -1)
    np.testing.assert_array_equal(prompts, prompts[:, :1].repeat(group_size, 1))

  def test_depends_on_the_seed_alone(self):
    chex.assert_trees_all_equal(
      rollouts.make_rollout(3), rollouts.make_rollout(3)
    )
    one, two = rollouts.make_rollout(0), rollouts.make_rollout(1)
    self.assertFalse(bool((one.old_logprobs == two.old_logprobs).all()))

  def test_a_group_of_one_is_refused(self):
    with self.assertRaisesRegex(ValueError, "group_size >= 2"):
      rollouts.make_rollout(group_size=1)


class ScriptedScoreTest(chex.TestCase):
  def test_shifts_every_token_and_scores_entropy_only_if_needed(self):
    rollout = rollouts.make_rollout()
    params = {"shift": jnp.arange(6) * 0.1}
    scores = rollouts.scripted_score()(params, rollout)
    self.assertIsNone(scores.entropy)
    shift = jnp.where(rollout.mask, params["shift"][None, :], 0.0)
    chex.assert_trees_all_close(
      scores.logprobs - rollout.old_logprobs, shift, atol=1e-6
    )
    score = rollouts.scripted_score(frozenset({"entropy"}))
    chex.assert_shape(score(params, rollout).entropy, rollout.mask.shape)
    grad = jax.grad(lambda p: score(p, rollout).logprobs.sum())(params)
    np.testing.assert_array_equal(grad["shift"], rollout.mask.sum(axis=0))


class GoldenTest(chex.TestCase):
  def _file(self, folder, outputs):
    case = {
      "kind": "k",
      "name": "n",
      "fixture": None,
      "inputs": {"x": [[1.0, "nan"], ["inf", "-inf"]]},
      "params": {"eps": 1e-6},
      "outputs": outputs,
    }
    path = pathlib.Path(folder) / "cases.json"
    content = {"produced_by": "us", "conventions": "", "cases": [case]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path

  def test_words_become_numbers(self):
    with tempfile.TemporaryDirectory() as folder:
      (case,) = golden.load(self._file(folder, {"y": 1.0}), kind="k")
    expected = [[1.0, np.nan], [np.inf, -np.inf]]
    np.testing.assert_array_equal(case.inputs["x"], expected)
    self.assertEqual(case.array("x").dtype, jnp.float32)
    self.assertEqual(str(case), "k-n-None-eps=1e-06")
    golden.assert_close(jnp.array(expected), case.inputs["x"])

  def test_a_selection_of_nothing_is_refused(self):
    with tempfile.TemporaryDirectory() as folder:
      path = self._file(folder, {"y": 1.0})
      with self.assertRaisesRegex(ValueError, "no case"):
        golden.load(path, name="other")

  @parameterized.parameters((1.001, 1.0), ([1.0, 1.0], 1.0), (1.0, "nan"))
  def test_a_difference_is_seen(self, actual, expected):
    with self.assertRaises(AssertionError):
      golden.assert_close(jnp.asarray(actual), expected)
