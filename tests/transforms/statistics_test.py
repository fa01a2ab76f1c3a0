"""The running baseline: debiased, weighted, one structure of state."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import statistics


def _run(transform, batches):
  """Baselines written for one batch of rewards after the other."""
  state, seen = transform.init(), []
  for rewards, weights in batches:
    rollout = rollouts.make_rollout().replace(rewards=rewards, weights=weights)
    rollout, state = jax.jit(transform.update)(rollout, state)
    seen.append(float(rollout.extras["baseline"]))
  return seen


class RunningBaselineTest(chex.TestCase):
  def test_a_constant_is_known_after_one_batch(self):
    batches = [(jnp.full(8, 2.0), jnp.ones(8))] * 4
    seen = _run(statistics.running_baseline(0.9), batches)
    self.assertEqual(seen[0], 0.0)
    for value in seen[1:]:
      self.assertAlmostEqual(value, 2.0, places=5)

  def test_is_the_decayed_mean_of_the_past(self):
    batches = [(jnp.full(8, float(x)), jnp.ones(8)) for x in (4, 1, 0)]
    seen = _run(statistics.running_baseline(0.5), batches)
    self.assertAlmostEqual(seen[2], (0.25 * 4 + 0.5 * 1) / 0.75, places=5)

  def test_dropped_rows_and_empty_batches_are_left_out(self):
    half = jnp.arange(8) < 4
    rewards = jnp.where(half, 3.0, jnp.nan)
    batches = [
      (rewards, half.astype(jnp.float32)),
      (jnp.full(8, jnp.nan), jnp.zeros(8)),
      (jnp.ones(8), jnp.ones(8)),
    ]
    seen = _run(statistics.running_baseline(0.9), batches)
    self.assertAlmostEqual(seen[1], 3.0, places=5)
    self.assertAlmostEqual(seen[2], 3.0, places=5)

  @parameterized.parameters(1.0, -0.1, 2.0)
  def test_a_bad_decay_is_refused(self, decay):
    with self.assertRaisesRegex(ValueError, r"decay must be in \[0, 1\)"):
      statistics.running_baseline(decay)
