"""The KL over the vocabulary against the whole matrix of logits."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.training import vocabulary_kl

P = jax.sharding.PartitionSpec
M, D, V = 11, 6, 23


def _inputs(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (M, D), (V, D), (M, D), (V, D)
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


def _whole(hidden, head, other, other_head, mask, scale=1.0, softcap=None):
  """The equations on [M, V]."""

  def log_softmax(hidden, head):
    z = jnp.dot(hidden, head.T, precision="highest")
    z = z if softcap is None else softcap * jnp.tanh(z / softcap)
    return jax.nn.log_softmax(scale * z)

  log_p = log_softmax(hidden, head)
  p, gap = jnp.exp(log_p), log_p - log_softmax(other, other_head)
  kl = jnp.where(mask, (p * gap).sum(axis=1), 0.0)
  return kl, jnp.where(mask, (p * p).sum(axis=1), 0.0)


def _gradients(function, inputs, mask):
  def total(hidden, head):
    kl, collision = function(hidden, head, *inputs[2:], mask)
    weights = jnp.arange(1.0, len(mask) + 1)
    return (weights * (kl + 0.3 * collision)).sum()

  return jax.grad(total, argnums=(0, 1))(*inputs[:2])


class VocabularyKlTest(chex.TestCase):
  @parameterized.parameters(
    (None, None, 1.0), (1, None, 0.7), (4, 2.0, 0.7), (M, 2.0, 1.0)
  )
  def test_equals_the_sum_over_all_logits(self, chunk, softcap, scale):
    inputs, mask = _inputs(), jnp.arange(M) % 4 > 0
    ours = functools.partial(
      vocabulary_kl.vocabulary_kl,
      chunk=chunk,
      softcap=softcap,
      inv_temperature=scale,
    )
    whole = functools.partial(_whole, scale=scale, softcap=softcap)
    found = ours(*inputs, mask)
    chex.assert_trees_all_close(
      tuple(found), whole(*inputs, mask), rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(
      _gradients(ours, inputs, mask),
      _gradients(whole, inputs, mask),
      rtol=1e-5,
      atol=1e-5,
    )

  def test_of_a_model_to_itself_is_exactly_zero_and_so_is_its_gradient(self):
    hidden, head, *_ = _inputs()
    mask = jnp.ones(M, bool)
    same = hidden, head, hidden, head
    kl, _ = vocabulary_kl.vocabulary_kl(*same, mask)
    np.testing.assert_array_equal(kl, 0.0)
    grad = jax.grad(
      lambda x: vocabulary_kl.vocabulary_kl(x, *same[1:], mask).kl.sum()
    )(hidden)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)

  def test_the_reference_gets_no_gradient(self):
    inputs, mask = _inputs(), jnp.ones(M, bool)
    grads = jax.grad(
      lambda *x: vocabulary_kl.vocabulary_kl(*inputs[:2], *x, mask).kl.sum(),
      argnums=(0, 1),
    )(*inputs[2:])
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))

  def test_padding_is_never_read(self):
    inputs, mask = _inputs(), jnp.arange(M) < 7
    junk = [inputs[0], inputs[1], inputs[2], inputs[3]]
    for index in (0, 2):
      junk[index] = jnp.where(mask[:, None], inputs[index], jnp.nan)
    function = vocabulary_kl.vocabulary_kl
    chex.assert_trees_all_equal(function(*inputs, mask), function(*junk, mask))
    chex.assert_trees_all_equal(
      _gradients(function, inputs, mask), _gradients(function, junk, mask)
    )

  def test_no_array_of_all_logits_is_made(self):
    tokens, vocab = 4096, 8192
    shapes = [(tokens, 8), (vocab, 8)] * 2
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = jax.ShapeDtypeStruct((tokens,), bool)

    def total(hidden, head, *rest):
      return vocabulary_kl.vocabulary_kl(hidden, head, *rest, chunk=64).kl.sum()

    grad = jax.jit(jax.grad(total, argnums=(0, 1)))
    memory = grad.lower(*inputs, mask).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 4 * tokens * vocab / 4)

  @parameterized.parameters((1, 4), (2, 2))
  def test_devices_that_hold_slices_of_the_vocabulary_agree(self, data, tensor):
    inputs, mask = _inputs(), jnp.arange(M) % 4 > 0
    # 12 rows of tokens and 24 of the vocabulary: the last are padding.
    inputs = [jnp.pad(x, ((0, 1), (0, 0)), constant_values=9) for x in inputs]
    mask = jnp.pad(mask, (0, 1))
    devices = np.array(jax.devices()[: data * tensor]).reshape(data, tensor)
    ours = jax.jit(
      jax.shard_map(
        functools.partial(
          vocabulary_kl.vocabulary_kl, axis_name="tensor", vocab=V, chunk=2
        ),
        mesh=jax.sharding.Mesh(devices, ("data", "tensor")),
        in_specs=(P("data"), P("tensor")) * 2 + (P("data"),),
        out_specs=P("data"),
      )
    )

    def whole(hidden, head, other, other_head, mask):
      return _whole(hidden, head[:V], other, other_head[:V], mask)

    chex.assert_trees_all_close(
      tuple(ours(*inputs, mask)), whole(*inputs, mask), rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(
      jax.jit(lambda: _gradients(ours, inputs, mask))(),
      _gradients(whole, inputs, mask),
      rtol=1e-5,
      atol=1e-5,
    )
