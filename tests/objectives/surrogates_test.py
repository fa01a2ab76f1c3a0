"""The clipped surrogate: where it pushes and where it stops."""

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
