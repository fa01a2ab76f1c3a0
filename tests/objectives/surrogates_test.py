"""Surrogates with PPO's clip: where they push and where they stop."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import surrogates


def _loss_and_grad(ratio, advantage, **clip):
  ratio = jnp.full((1, 1), ratio)
  advantage = jnp.full((1, 1), advantage)

  def loss(log_ratio):
    out, _ = surrogates.clipped_surrogate(log_ratio, advantage, **clip)
    return out.sum()

  value, grad = jax.value_and_grad(loss)(jnp.log(ratio))
  return float(value), float(grad[0, 0])


class ClippedSurrogateTest(chex.TestCase):
  @parameterized.parameters(
    # ratio, advantage, loss, d loss / d log ratio; the region is [0.8, 1.28]
    (1.0, 2.0, -2.0, -2.0),
    (1.25, 2.0, -2.5, -2.5),
    (1.5, 2.0, -2.56, 0.0),
    (0.5, 2.0, -1.0, -1.0),
    (1.5, -2.0, 3.0, 3.0),
    (0.5, -2.0, 1.6, 0.0),
    (0.5, 0.0, 0.0, 0.0),
  )
  def test_a_worked_example(self, ratio, advantage, loss, slope):
    actual = _loss_and_grad(ratio, advantage, clip_low=0.2, clip_high=0.28)
    np.testing.assert_allclose(actual, (loss, slope), rtol=1e-5)

  def test_on_policy_the_clip_does_not_matter(self):
    advantages = jax.random.normal(jax.random.key(0), (3, 4))
    zeros = jnp.zeros((3, 4))
    tight, _ = surrogates.clipped_surrogate(
      zeros, advantages, clip_low=1e-3, clip_high=1e-3
    )
    np.testing.assert_array_equal(tight, -advantages)

  def test_fractions_tell_the_sides_apart(self):
    log_ratio = jnp.log(jnp.array([[0.5, 0.5, 1.5, 1.5, 1.0]]))
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
    _, clipped = surrogates.clipped_surrogate(log_ratio, advantages)
    low, high = clipped["clip_fraction_low"], clipped["clip_fraction_high"]
    np.testing.assert_array_equal(low, [[0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(high, [[0, 0, 1, 0, 0]])

  def test_advantages_get_no_gradient(self):
    grad = jax.grad(
      lambda a: surrogates.clipped_surrogate(jnp.ones((2, 2)), a)[0].sum()
    )(jnp.ones((2, 2)))
    np.testing.assert_array_equal(grad, 0.0)

  @parameterized.parameters(
    (0.0, 0.2, "clip_low"),
    (1.5, 0.2, "clip_low"),
    (0.2, 0.0, "clip_high"),
    (0.2, float("nan"), "clip_high"),
  )
  def test_a_region_without_width_is_refused(self, low, high, name):
    with self.assertRaisesRegex(ValueError, name):
      surrogates.check_clip(low, high)


def _slope(surrogate, ratio, advantage, **knobs):
  """Loss and d loss / d log ratio of one token."""
  credit = jnp.full((1, 1), advantage)
  run = jax.value_and_grad(lambda d: surrogate(d, credit, **knobs)[0].sum())
  value, grad = run(jnp.log(jnp.full((1, 1), ratio)))
  return float(value), float(grad[0, 0])


def _many(scale=1.0):
  """Log-ratios and advantages of many tokens."""
  keys = jax.random.split(jax.random.key(3), 2)
  log_ratio = scale * jax.random.normal(keys[0], (16, 32))
  return log_ratio, jax.random.normal(keys[1], (16, 32))


def _same(one, other, *args):
  """Equal loss and equal gradient."""
  run = lambda f: jax.value_and_grad(lambda d: f(d, *args[1:])[0].sum())(  # noqa: E731
    args[0]
  )
  chex.assert_trees_all_close(run(one), run(other), rtol=1e-5, atol=1e-6)


class DualClipTest(chex.TestCase):
  KNOBS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}

  @parameterized.parameters(
    # ratio, advantage, loss, d loss / d log ratio
    (2.0, -1.5, 3.0, 3.0),
    (4.0, -1.5, 4.5, 0.0),
    (4.0, 1.5, -1.92, 0.0),
    (0.5, -1.5, 1.2, 0.0),
    (9.0, 0.0, 0.0, 0.0),
  )
  def test_a_worked_example(self, ratio, advantage, loss, slope):
    actual = _slope(
      surrogates.dual_clip_surrogate, ratio, advantage, **self.KNOBS
    )
    np.testing.assert_allclose(actual, (loss, slope), rtol=1e-5, atol=1e-7)

  def test_negative_advantages_cost_a_bounded_sum(self):
    log_ratio, advantages = _many(scale=5.0)
    loss, _ = surrogates.dual_clip_surrogate(log_ratio, advantages)
    bound = jnp.where(advantages < 0, 3.0 * jnp.abs(advantages), jnp.inf)
    self.assertTrue(bool((jnp.abs(loss) <= bound * 1.0001).all()))

  def test_a_far_bound_is_ppo(self):
    _same(
      lambda *x: surrogates.dual_clip_surrogate(*x, dual_clip=1e9),
      surrogates.clipped_surrogate,
      *_many(),
    )

  def test_the_fraction_counts_what_is_cut_a_second_time(self):
    log_ratio = jnp.log(jnp.array([[4.0, 4.0, 2.0]]))
    advantages = jnp.array([[-1.0, 1.0, -1.0]])
    _, cut = surrogates.dual_clip_surrogate(log_ratio, advantages)
    np.testing.assert_array_equal(cut["dual_clip_fraction"], [[1, 0, 0]])

  @parameterized.parameters(1.2, 0.5, float("nan"))
  def test_a_bound_inside_the_region_is_refused(self, dual_clip):
    with self.assertRaisesRegex(ValueError, "dual_clip must be above"):
      surrogates.check_dual_clip(dual_clip, clip_high=0.2)


class TwoSidedTest(chex.TestCase):
  def test_delta_above_the_clip_is_dual_clip(self):
    _same(
      lambda *x: surrogates.two_sided_surrogate(*x, delta=1.5),
      lambda *x: surrogates.dual_clip_surrogate(*x, dual_clip=1.5),
      *_many(),
    )

  @parameterized.parameters(
    # ratio, advantage, loss, slope; delta 1.1 below 1 + clip_high = 1.2
    (1.15, 1.0, -1.1, 0.0),
    (1.15, -1.0, 1.15, 1.15),
    (1.5, -1.0, 1.2, 0.0),
  )
  def test_delta_below_the_clip(self, ratio, advantage, loss, slope):
    actual = _slope(surrogates.two_sided_surrogate, ratio, advantage, delta=1.1)
    np.testing.assert_allclose(actual, (loss, slope), rtol=1e-5)


class UnclippedTest(chex.TestCase):
  def test_a_wide_region_is_none(self):
    _same(
      lambda *x: surrogates.clipped_surrogate(*x, clip_low=1.0, clip_high=1e9),
      surrogates.unclipped_surrogate,
      *_many(),
    )

  def test_on_policy_all_have_the_gradient_of_reinforce(self):
    _, advantages = _many()
    for surrogate in (
      surrogates.clipped_surrogate,
      surrogates.dual_clip_surrogate,
      surrogates.two_sided_surrogate,
      surrogates.unclipped_surrogate,
      surrogates.reinforce_surrogate,
    ):
      grad = jax.grad(lambda d: surrogate(d, advantages)[0].sum())(  # noqa: B023
        jnp.zeros_like(advantages)
      )
      chex.assert_trees_all_close(grad, -advantages, atol=1e-6)


class BlendedTest(chex.TestCase):
  def test_is_a_mean_of_losses_and_of_metrics_by_row(self):
    log_ratio = jnp.log(jnp.array([[0.5, 1.5], [0.5, 1.5]]))
    up, down = (
      surrogates.dual_clip_surrogate(log_ratio, jnp.full((2, 2), credit))
      for credit in (1.0, -1.0)
    )
    share = jnp.array([[1.0], [0.25]])
    losses, metrics = surrogates.blended(share, up, down)
    np.testing.assert_allclose(losses[0], up[0][0], rtol=1e-6)
    np.testing.assert_allclose(
      losses[1], 0.25 * up[0][1] + 0.75 * down[0][1], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["clip_fraction_high"][:, 1], [1, 0.25])
    np.testing.assert_allclose(metrics["clip_fraction_low"][:, 0], [0, 0.75])
