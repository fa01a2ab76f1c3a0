"""Attention over parts against one softmax over all keys, and its gradient."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.models import attention

B, G, K, Q, S, T, D = 2, 3, 2, 4, 5, 6, 8
N = B * G


def _operands():
  shapes = (
    (N, K, Q, D),
    (B, K, S, D),
    (B, K, S, D),
    (N, K, T, D),
    (N, K, T, D),
  )
  keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
  arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
  shared = (
    jax.random.bernoulli(keys[-1], 0.7, (B, 1, 1, S)).at[..., 0].set(True)
  )
  own = jax.random.bernoulli(keys[-2], 0.7, (N, 1, Q, T))
  return arrays, shared, own


def _parts(arrays, shared, own, softcap):
  q, pk, pv, ok, ov = arrays
  parts = [attention.Part(pk, pv, shared), attention.Part(ok, ov, own)]
  return attention.attend(q, parts, scale=0.4, softcap=softcap)


def _one_softmax(arrays, shared, own, softcap):
  q, pk, pv, ok, ov = arrays
  k = jnp.concatenate([jnp.repeat(pk, G, axis=0), ok], axis=2)
  v = jnp.concatenate([jnp.repeat(pv, G, axis=0), ov], axis=2)
  shared = jnp.repeat(jnp.broadcast_to(shared, (B, 1, Q, S)), G, axis=0)
  allowed = jnp.concatenate([shared, own], axis=3)
  scores = jnp.einsum("nkqd,nksd->nkqs", q, k) * 0.4
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(allowed, scores, -jnp.inf)
  return jnp.einsum("nkqs,nksd->nkqd", jax.nn.softmax(scores), v)


class AttentionTest(chex.TestCase):
  @parameterized.parameters(None, 1.5)
  def test_parts_are_one_softmax_in_value_and_gradient(self, softcap):
    arrays, shared, own = _operands()
    tilt = jax.random.normal(jax.random.key(9), (N, K, Q, D))

    def loss(fn):
      return lambda arrays: (tilt * fn(arrays, shared, own, softcap)).sum()

    ours = jax.jit(jax.value_and_grad(loss(_parts)))(arrays)
    expected = jax.value_and_grad(loss(_one_softmax))(arrays)
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(None, 1.5)
  def test_what_is_masked_gets_no_gradient(self, softcap):
    arrays, shared, own = _operands()
    shared, own = shared.at[..., 2].set(False), own.at[..., 3].set(False)
    grads = jax.grad(lambda arrays: _parts(arrays, shared, own, softcap).sum())(
      arrays
    )
    for grad, key in zip(grads[1:], (2, 2, 3, 3), strict=True):
      chex.assert_trees_all_equal(
        grad[:, :, key], jnp.zeros_like(grad[:, :, key])
      )
      self.assertGreater(float(jnp.abs(grad).max()), 1e-3)

  def test_low_precision_keys_keep_float32_sums(self):
    arrays, shared, own = _operands()
    low = [x.astype(jnp.bfloat16) for x in arrays]
    back = [x.astype(jnp.float32) for x in low]
    out = _parts(low, shared, own, None)
    self.assertEqual(out.dtype, jnp.float32)
    expected = _one_softmax(back, shared, own, None)
    chex.assert_trees_all_close(out, expected, atol=2e-2)
