"""The soft overlong penalty: shape, edges, official numbers."""

import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import golden, rollouts
from jaxrl_llm.transforms import shaping

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


class SoftOverlongTest(chex.TestCase):
  def test_falls_from_zero_to_minus_the_factor(self):
    penalty = shaping.soft_overlong(
      jnp.arange(0, 130), max_length=100, buffer=20, factor=0.5
    )
    self.assertEqual(float(penalty[80]), 0.0)
    self.assertEqual(float(penalty[90]), -0.25)
    self.assertEqual(float(penalty[100]), -0.5)
    self.assertEqual(float(penalty[129]), -0.5)
    self.assertLessEqual(float(jnp.diff(penalty).max()), 0.0)
    self.assertGreaterEqual(float(jnp.diff(penalty).min()), -0.0251)

  @parameterized.parameters(golden.load(GOLDEN / "soft_overlong_trl.json"))
  def test_trl(self, case):
    actual = shaping.soft_overlong(
      jnp.asarray(case.inputs["lengths"], jnp.int32),
      max_length=case.params["max_completion_len"],
      buffer=case.params["soft_punish_cache"],
      factor=1.0,
    )
    golden.assert_close(actual, case.outputs["penalty"])

  @parameterized.parameters(
    ({"buffer": 0}, "buffer must be at least 1"),
    ({"buffer": 101}, "buffer must be in"),
    ({"factor": -1.0}, "factor must be 0 or more"),
  )
  def test_a_bad_knob_is_refused(self, change, message):
    knobs = {"max_length": 100, "buffer": 20, "factor": 1.0} | change
    with self.assertRaisesRegex(ValueError, message):
      shaping.soft_overlong(jnp.arange(3), **knobs)


class OverlongPenaltyTest(chex.TestCase):
  def test_counts_the_policys_own_tokens(self):
    rollout = rollouts.make_rollout(length=6)
    own = jnp.arange(6)[None, :] < jnp.arange(8)[:, None]  # 0, 1, ... 6, 6
    rollout = rollout.replace(mask=own, rewards=jnp.ones(8))
    transform = shaping.overlong_penalty(buffer=2)
    changed, _ = jax.jit(transform.update)(rollout, transform.init())
    np.testing.assert_array_equal(
      changed.rewards, [1, 1, 1, 1, 1, 0.5, 0.0, 0.0]
    )

  def test_the_limit_may_be_given(self):
    rollout = rollouts.make_rollout(length=6)
    rollout = rollout.replace(mask=jnp.ones((8, 6), bool))
    transform = shaping.overlong_penalty(buffer=4, max_length=8, factor=2.0)
    changed, _ = transform.update(rollout, transform.init())
    np.testing.assert_array_equal(changed.rewards, rollout.rewards - 1.0)

  def test_a_buffer_longer_than_the_rollout_is_refused(self):
    transform = shaping.overlong_penalty(buffer=7)
    with self.assertRaisesRegex(ValueError, r"buffer must be in \[1, 6\]"):
      transform.update(rollouts.make_rollout(length=6), transform.init())
