"""The value head: linear, float32, and how much of it the trunk feels."""

import dataclasses

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models import families, value_head

D = 16


def _params():
  weight = jax.random.normal(jax.random.key(1), (D,))
  return {"weight": weight, "bias": jnp.float32(0.5)}


def _hidden(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(2), (3, 4, D)).astype(dtype)


class ValueHeadTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_it_is_linear_and_float32(self, dtype):
    hidden = _hidden(dtype)
    found = self.variant(value_head.ValueHead().apply)(_params(), hidden)
    wanted = np.asarray(hidden, np.float64) @ _params()["weight"] + 0.5
    self.assertEqual(found.dtype, jnp.float32)
    np.testing.assert_allclose(found, wanted, atol=1e-5)

  def test_a_new_one_says_zero_and_can_learn(self):
    head = value_head.ValueHead()
    model = families.build(dataclasses.replace(families.TINY, width=D))
    params = head.init(jax.random.key(0), model)
    np.testing.assert_array_equal(head.apply(params, _hidden()), 0.0)
    grads = jax.grad(lambda p: head.apply(p, _hidden()).sum())(params)
    np.testing.assert_allclose(
      grads["weight"], _hidden().sum(axis=(0, 1)), rtol=1e-5
    )
    self.assertEqual(grads["bias"], 12.0)

  @parameterized.parameters(0.0, 0.25, 1.0)
  def test_the_trunk_feels_its_share(self, share):
    head = value_head.ValueHead(trunk_gradient=share)
    run = lambda p, h: head.apply(p, h).sum()  # noqa: E731
    own, trunk = jax.grad(run, argnums=(0, 1))(_params(), _hidden())
    wanted = jnp.broadcast_to(_params()["weight"], (3, 4, D))
    np.testing.assert_allclose(trunk, share * wanted, rtol=1e-6)
    full = jax.grad(lambda p: value_head.ValueHead().apply(p, _hidden()).sum())
    chex.assert_trees_all_close(own, full(_params()), atol=1e-5)

  @parameterized.parameters(-0.1, 1.1, float("nan"))
  def test_a_share_is_a_share(self, share):
    with self.assertRaisesRegex(ValueError, r"trunk_gradient must be in \[0"):
      value_head.ValueHead(trunk_gradient=share)

  @parameterized.parameters(0.0, float("inf"))
  def test_a_rate_is_positive(self, rate):
    with self.assertRaisesRegex(ValueError, "critic_rate must be positive"):
      value_head.ValueHead(rate=rate)
