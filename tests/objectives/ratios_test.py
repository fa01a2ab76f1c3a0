"""Log-ratios: padding, bounds, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.objectives import ratios

MASK = jnp.array([[True, True, False]])


class TokenLogRatioTest(chex.TestCase):
  def test_is_the_difference_inside_the_mask_only(self):
    now = jnp.array([[-1.0, -2.0, jnp.inf]])
    old = jnp.array([[-1.5, -1.0, jnp.nan]])
    actual = ratios.token_log_ratio(now, old, MASK)
    np.testing.assert_array_equal(actual, [[0.5, -1.0, 0.0]])

  def test_padding_has_no_gradient(self):
    old = jnp.array([[-1.5, -1.0, jnp.inf]])
    grad = jax.grad(lambda x: ratios.token_log_ratio(x, old, MASK).sum())(
      jnp.array([[-1.0, -2.0, jnp.inf]])
    )
    np.testing.assert_array_equal(grad, [[1.0, 1.0, 0.0]])

  def test_exp_of_a_hopeless_token_is_finite(self):
    now, old = jnp.array([[0.0, -500.0, 0.0]]), jnp.array([[-500.0, 0.0, 0.0]])
    actual = ratios.token_log_ratio(now, old, MASK)
    np.testing.assert_array_equal(actual, [[20.0, -20.0, 0.0]])
    chex.assert_tree_all_finite(jnp.exp(actual))
