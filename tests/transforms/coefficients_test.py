"""Coefficients that follow a measurement: rules, bounds, state, first steps."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import coefficients

f32 = jnp.float32


class NextKlCoefTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    (0.1, 0.2),  # on target: stays
    (0.05, 0.2 * (1 - 0.2 * 0.01)),  # half of it: the error is bounded
    (0.11, 0.2 * (1 + 0.1 * 0.01)),
    (50.0, 0.2 * (1 + 0.2 * 0.01)),
  )
  def test_moves_by_the_bounded_error(self, measured, expected):
    run = self.variant(coefficients.next_kl_coef)
    actual = run(f32(0.2), f32(measured), f32(100))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  def test_no_rows_leave_it_as_it_is(self):
    actual = coefficients.next_kl_coef(f32(0.3), f32(0.0), f32(0))
    self.assertEqual(float(actual), float(f32(0.3)))

  def test_settles_where_the_kl_is_on_target(self):
    coef = f32(0.001)
    for _ in range(4000):  # a KL that falls as its price rises
      coef = coefficients.next_kl_coef(
        coef, 0.01 / coef, f32(256), target=0.1, horizon=10_000
      )
    np.testing.assert_allclose(coef, 0.1, rtol=0.01)


class AdaptiveKlTest(chex.TestCase):
  def test_a_step_uses_what_the_steps_before_measured(self):
    transform = coefficients.adaptive_kl(init=0.5, target=0.1, horizon=100)
    rollout = rollouts.make_rollout()
    state = transform.init()
    rows = rollout.weights.shape[0]
    for expected in (0.5, 0.5 * (1 + 0.2 * rows / 100)):
      seen, state = transform.update(rollout, state)
      np.testing.assert_allclose(seen.extras["kl_coef"], expected, rtol=1e-6)
      np.testing.assert_array_equal(
        seen.extras["metric/kl_coef"], seen.extras["kl_coef"]
      )
      state = transform.observe(state, {"reference_kl": f32(9.0)})

  def test_rows_that_do_not_count_do_not_hurry_it(self):
    transform = coefficients.adaptive_kl(init=0.5)
    rollout = rollouts.make_rollout()
    rollout = rollout.replace(
      weights=rollout.weights.at[0].set(0.0),
      mask=rollout.mask.at[1].set(False),
    )
    _, state = transform.update(rollout, transform.init())
    self.assertEqual(float(state.rows), 6.0)
    empty = rollout.replace(weights=jnp.zeros_like(rollout.weights))
    _, state = transform.update(empty, transform.init())
    after = transform.observe(state, {"reference_kl": f32(0.0)})
    self.assertEqual(float(after.coef), 0.5)

  @parameterized.parameters("init", "target", "horizon")
  def test_what_is_not_positive_is_refused(self, name):
    with self.assertRaisesRegex(ValueError, f"{name} must be positive"):
      coefficients.adaptive_kl(**{name: 0.0})


def _entropy(metrics):
  return metrics["entropy"]


class AdaptiveEntropyTest(chex.TestCase):
  def _run(self, entropies, **knobs):
    """Coefficients applied in the steps that measure these entropies."""
    transform = coefficients.adaptive_entropy(_entropy, **knobs)
    rollout, state = rollouts.make_rollout(), transform.init()
    applied = []
    for entropy in entropies:
      seen, state = transform.update(rollout, state)
      applied.append(float(seen.extras["entropy_coef"]))
      state = transform.observe(state, {"entropy": f32(entropy)})
    return applied, state

  def test_is_applied_only_after_a_step_of_low_entropy(self):
    applied, state = self._run(
      [0.1, 0.1, 0.9, 0.2, 0.1], init=0.5, target=0.25, delta=0.125
    )
    # coefficients before the steps: .5, .625, .75, .625, .75
    np.testing.assert_allclose(applied, [0.0, 0.625, 0.75, 0.0, 0.75])
    self.assertEqual(float(state.coef), 0.875)

  def test_entropy_on_target_counts_as_low(self):
    applied, _ = self._run([0.25, 1.0], init=0.0, target=0.25, delta=0.125)
    self.assertEqual(applied, [0.0, 0.125])

  def test_stays_within_its_bounds(self):
    _, state = self._run([0.0] * 9, init=0.5, delta=0.25, high=0.75)
    self.assertEqual(float(state.coef), 0.75)
    _, state = self._run([9.0] * 9, init=0.5, delta=0.25, low=0.25)
    self.assertEqual(float(state.coef), 0.25)

  def test_what_makes_no_sense_is_refused(self):
    for knobs, message in (
      ({"init": 2.0}, "low <= init <= high"),
      ({"low": -1.0}, "low <= init <= high"),
      ({"delta": 0.0}, "delta must be positive"),
      ({"target": -0.2}, "target must be positive"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        coefficients.adaptive_entropy(_entropy, **knobs)


class StateTest(chex.TestCase):
  @parameterized.named_parameters(
    ("kl", coefficients.adaptive_kl(), "reference_kl"),
    ("entropy", coefficients.adaptive_entropy(_entropy), "entropy"),
  )
  def test_state_keeps_its_shapes_dtypes_and_trace(self, transform, name):
    traces = []

    @jax.jit
    def step(rollout, state):
      traces.append(1)
      rollout, state = transform.update(rollout, state)
      return transform.observe(state, {name: rollout.rewards.mean()})

    rollout, state = rollouts.make_rollout(), transform.init()
    for _ in range(3):
      new = step(rollout, state)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
      state = new
    self.assertLen(traces, 1)
