"""CISPO, SAPO and VESPO: gradients that fade or are bounded, never cut."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import soft_clips, surrogates


def _many(scale=1.0):
  """Log-probs, log-ratios and advantages of many tokens."""
  keys = jax.random.split(jax.random.key(5), 3)
  logprobs = -jax.random.exponential(keys[0], (8, 16))
  log_ratio = scale * jax.random.normal(keys[1], (8, 16))
  return logprobs, log_ratio, jax.random.normal(keys[2], (8, 16))


def _slope_of_logprob(surrogate, log_ratio, advantage, **knobs):
  """d loss / d logprob of one token; the ratio is no part of it."""
  shaped = [jnp.full((1, 1), x) for x in (log_ratio, advantage)]
  loss = lambda x: surrogate(x, *shaped, **knobs)[0].sum()  # noqa: E731
  return float(jax.grad(loss)(jnp.full((1, 1), -2.0))[0, 0])


def _slope_of_ratio(log_ratio, advantage, **knobs):
  """d loss / d log ratio of one token of SAPO."""
  loss = lambda d: soft_clips.sapo_surrogate(  # noqa: E731
    d, jnp.full((1, 1), advantage), **knobs
  )[0].sum()
  return float(jax.grad(loss)(jnp.full((1, 1), log_ratio))[0, 0])


class CispoTest(chex.TestCase):
  @parameterized.parameters(
    # ratio, advantage, weight; caps 0.8 and 1.28
    (1.0, 2.0, 1.0),
    (9.0, 2.0, 1.28),
    (9.0, -2.0, 1.28),
    (0.1, 2.0, 0.8),
    (0.1, -2.0, 0.8),
  )
  def test_no_token_loses_its_gradient(self, ratio, advantage, weight):
    slope = _slope_of_logprob(
      soft_clips.cispo_surrogate,
      np.log(ratio),
      advantage,
      ratio_low=0.8,
      ratio_high=1.28,
    )
    np.testing.assert_allclose(slope, -weight * advantage, rtol=1e-6)

  def test_caps_of_one_are_reinforce(self):
    logprobs, log_ratio, advantages = _many()
    ours, _ = soft_clips.cispo_surrogate(
      logprobs, log_ratio, advantages, ratio_low=1.0, ratio_high=1.0
    )
    plain, _ = surrogates.reinforce_surrogate(logprobs, advantages)
    chex.assert_trees_all_close(ours, plain)

  def test_the_weight_and_the_credit_are_constants(self):
    logprobs, log_ratio, advantages = _many()
    loss = lambda d, a: soft_clips.cispo_surrogate(logprobs, d, a)[0].sum()  # noqa: E731
    for grad in jax.grad(loss, argnums=(0, 1))(log_ratio, advantages):
      np.testing.assert_array_equal(grad, 0.0)

  def test_fractions_tell_the_sides_apart(self):
    log_ratio = jnp.log(jnp.array([[0.5, 1.0, 6.0]]))
    ones = jnp.ones((1, 3))
    _, cut = soft_clips.cispo_surrogate(ones, log_ratio, ones, ratio_low=0.8)
    np.testing.assert_array_equal(cut["clip_fraction_low"], [[1, 0, 0]])
    np.testing.assert_array_equal(cut["clip_fraction_high"], [[0, 0, 1]])

  @parameterized.parameters(
    (-0.1, 5.0, "ratio_low"),
    (1.1, 5.0, "ratio_low"),
    (0.0, 0.28, "ratio_high"),
    (0.0, float("nan"), "ratio_high"),
  )
  def test_half_widths_in_the_place_of_caps_are_refused(self, low, high, name):
    with self.assertRaisesRegex(ValueError, name):
      soft_clips.check_caps(low, high)


class SapoTest(chex.TestCase):
  @parameterized.product(tau=(0.1, 1.0, 4.0), advantage=(-2.0, 0.0, 1.5))
  def test_on_policy_the_gradient_is_grpo_s_for_any_tau(self, tau, advantage):
    slope = _slope_of_ratio(0.0, advantage, tau_pos=tau, tau_neg=tau)
    np.testing.assert_allclose(slope, -advantage, rtol=1e-6)

  @parameterized.parameters((1.0, 2.0, -1.0), (-1.0, 4.0, 0.5))
  def test_on_policy_the_value_is_two_over_tau(self, advantage, tau, loss):
    actual, _ = soft_clips.sapo_surrogate(
      jnp.zeros((1, 1)), jnp.full((1, 1), advantage), tau_pos=2.0, tau_neg=4.0
    )
    np.testing.assert_allclose(actual, [[loss]], rtol=1e-6)

  @parameterized.parameters(1.0, -1.0)
  def test_the_gradient_fades_on_both_sides(self, advantage):
    slopes = [
      abs(_slope_of_ratio(d, advantage, tau_pos=4.0, tau_neg=4.0)) / np.exp(d)
      for d in (-2.0, -1.0, 0.0, 0.5, 1.0)
    ]
    self.assertTrue(slopes[0] < slopes[1] < slopes[2])
    self.assertTrue(slopes[2] > slopes[3] > slopes[4] > 0)

  def test_a_small_tau_is_the_unclipped_surrogate(self):
    _, log_ratio, advantages = _many(scale=0.3)
    ours = jax.grad(
      lambda d: soft_clips.sapo_surrogate(
        d, advantages, tau_pos=1e-3, tau_neg=1e-3
      )[0].sum()
    )(log_ratio)
    plain = -jnp.exp(log_ratio) * advantages
    chex.assert_trees_all_close(ours, plain, rtol=1e-4)

  def test_a_hopeless_ratio_is_finite(self):
    log_ratio = jnp.array([[20.0, -20.0]])
    for credit in (jnp.ones((1, 2)), -jnp.ones((1, 2))):
      run = lambda d: soft_clips.sapo_surrogate(d, credit)[0].sum()  # noqa: B023, E731
      chex.assert_tree_all_finite(jax.value_and_grad(run)(log_ratio))


class VespoTest(chex.TestCase):
  def test_on_policy_it_is_reinforce(self):
    logprobs, log_ratio, advantages = _many()
    ours, metrics = soft_clips.vespo_surrogate(
      logprobs, jnp.zeros_like(log_ratio), advantages
    )
    plain, _ = surrogates.reinforce_surrogate(logprobs, advantages)
    chex.assert_trees_all_close(ours, plain)
    np.testing.assert_array_equal(metrics["phi"], 1.0)

  @parameterized.parameters((1.0, 2.0 / 3.0), (-1.0, 1.5))
  def test_the_weight_is_largest_at_k_over_lambda(self, advantage, peak):
    log_ratio = jnp.linspace(-3.0, 3.0, 6001)[None, :]
    credit = jnp.full_like(log_ratio, advantage)
    _, metrics = soft_clips.vespo_surrogate(credit, log_ratio, credit)
    found = jnp.exp(log_ratio[0, metrics["phi"][0].argmax()])
    np.testing.assert_allclose(found, peak, rtol=2e-3)

  @parameterized.product(log_ratio=(-1e4, -40.0, 40.0, 1e4, jnp.inf, -jnp.inf))
  def test_the_weight_vanishes_at_both_ends(self, log_ratio):
    for advantage in (1.0, -1.0):
      slope = _slope_of_logprob(
        soft_clips.vespo_surrogate, log_ratio, advantage
      )
      np.testing.assert_allclose(slope, 0.0, atol=1e-12)

  @parameterized.parameters(
    (soft_clips.check_positive, 0.0),
    (soft_clips.check_positive, float("inf")),
    (soft_clips.check_not_negative, -1.0),
    (soft_clips.check_not_negative, float("nan")),
  )
  def test_bad_knobs_are_named(self, check, value):
    with self.assertRaisesRegex(ValueError, "k_pos"):
      check(k_neg=1.0, k_pos=value)


class JitTest(chex.TestCase):
  def test_jit_changes_nothing(self):
    logprobs, log_ratio, advantages = _many()
    for surrogate, args in (
      (soft_clips.cispo_surrogate, (logprobs, log_ratio, advantages)),
      (soft_clips.sapo_surrogate, (log_ratio, advantages)),
      (soft_clips.vespo_surrogate, (logprobs, log_ratio, advantages)),
    ):
      chex.assert_trees_all_close(
        surrogate(*args), jax.jit(surrogate)(*args), rtol=1e-5
      )
