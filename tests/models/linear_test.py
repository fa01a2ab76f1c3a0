from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.models import linear


def _operands(rows=40, inner=48, outer=32):
  x, w = (jax.random.key(i) for i in range(2))
  x = jax.random.normal(x, (2, rows // 2, inner))
  return x, jax.random.normal(w, (inner, outer)) / inner**0.5


class LinearTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_is_the_matrix_product_with_its_gradients(self):
    x, w = _operands()
    plain = lambda x, w: jnp.sin(jnp.einsum("rti,io->rto", x, w)).sum()
    ours = self.variant(
      jax.value_and_grad(
        lambda x, w: jnp.sin(linear.linear(x, w)).sum(), argnums=(0, 1)
      )
    )
    expected = jax.value_and_grad(plain, argnums=(0, 1))(x, w)
    chex.assert_trees_all_close(ours(x, w), expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(48, 40)
  def test_bfloat16_rounds_factors_only(self, inner):
    x, w = _operands(inner=inner)
    low = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
    y = linear.linear(x, w, dtype=jnp.bfloat16)
    exact = jnp.einsum(
      "rti,io->rto", low(x), low(w), precision=jax.lax.Precision.HIGHEST
    )
    self.assertEqual(y.dtype, jnp.float32)
    chex.assert_trees_all_close(y, exact, atol=1e-5)

  def test_gradient_of_a_float32_weight_is_not_rounded_to_bfloat16(self):
    x, w = _operands()
    dw = jax.grad(lambda w: linear.linear(x, w, dtype=jnp.bfloat16).sum())(w)
    exact = x.astype(jnp.bfloat16).astype(jnp.float32).sum((0, 1))
    chex.assert_trees_all_close(dw[:, 0], exact, rtol=1e-5, atol=1e-5)
    self.assertGreater(
      float(jnp.abs(dw - dw.astype(jnp.bfloat16).astype(jnp.float32)).max()),
      0.0,
    )

  def test_frozen_weights_give_the_same_product(self):
    x, w = _operands()
    params = {"layers": {"w": w[None], "norm": x[0, :1]}, "embed": w}
    frozen = linear.freeze(params, jnp.bfloat16)
    self.assertEqual(frozen["layers"]["w"].dtype, jnp.uint16)
    self.assertEqual(frozen["layers"]["norm"].dtype, jnp.float32)
    self.assertEqual(frozen["embed"].dtype, jnp.bfloat16)
    chex.assert_trees_all_equal(
      linear.linear(x, frozen["layers"]["w"][0], dtype=jnp.bfloat16),
      linear.linear(x, w, dtype=jnp.bfloat16),
    )

  def test_float32_is_frozen_as_it_is(self):
    w = jnp.ones((2, 3, 4))
    self.assertIs(linear.freeze({"layers": w}, jnp.float32)["layers"], w)

  def test_what_is_stored_in_bfloat16_is_read_in_float32_once(self):
    w = jnp.ones((2, 3, 4), jnp.bfloat16)
    frozen = linear.freeze({"layers": w, "embed": w[0]}, jnp.float32)
    self.assertEqual({x.dtype.name for x in frozen.values()}, {"float32"})

  def test_blocked_transpose_is_the_transpose(self):
    x = jax.random.normal(jax.random.key(0), (7, 32)).astype(jnp.bfloat16)
    chex.assert_trees_all_equal(linear.transposed(x), x.T)
