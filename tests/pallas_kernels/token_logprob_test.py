"""Properties, edges and memory of token_logprob on every platform.

Values and gradients against float64 are in implementations_test.py, the
kernels' own traps in token_logprob_tpu_test.py.
"""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import token_logprob as package
from pallas_kernels.token_logprob import xla

token_logprob = package.token_logprob


def problem(tokens, width, vocab, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(tokens, width)), dtype)
  head = jnp.asarray(0.3 * rng.normal(size=(vocab, width)), dtype)
  targets = rng.integers(0, vocab, tokens)
  targets[:3] = [vocab - 1, -1, vocab]
  g = jnp.asarray(rng.normal(size=(3, tokens)), jnp.float32)
  return hidden, head, jnp.asarray(targets, jnp.int32), g


@functools.partial(jax.jit, static_argnums=(4,))
def values_and_grads(hidden, head, targets, g, options, mask=None):
  def loss(hidden, head):
    out = token_logprob(hidden, head, targets, mask=mask, **dict(options))
    return sum((a * b).sum() for a, b in zip(out, g, strict=True)), out

  grads, out = jax.grad(loss, (0, 1), has_aux=True)(hidden, head)
  return out, grads


def assert_close(actual, expected, tolerance):
  """Error relative to the largest entry: sums over V round on that scale."""
  actual = np.asarray(actual, np.float64)
  error = np.abs(actual - expected).max()
  assert error <= tolerance * np.abs(expected).max(), error


class TokenLogprobTest(chex.TestCase):
  def test_chunks_do_not_change_the_result(self):
    hidden, head, targets, g = problem(33, 16, 1003)
    whole, whole_grads = values_and_grads(hidden, head, targets, g, ())
    for chunk in (17, 502, 1002, 5000):
      options = (("chunk", chunk),)
      out, grads = values_and_grads(hidden, head, targets, g, options)
      chex.assert_trees_all_close(out, whole, atol=5e-6)
      chex.assert_trees_all_close(grads, whole_grads, atol=1e-5)

  def test_targets_outside_the_vocabulary_have_logit_zero(self):
    hidden, head, targets, _ = problem(8, 16, 300)
    out = token_logprob(hidden, head, targets, chunk=128)
    np.testing.assert_array_equal(out.logprob[1:3], -out.logsumexp[1:3])

  @parameterized.parameters(
    (jnp.float32, None), (jnp.bfloat16, None), (jnp.float32, 128)
  )
  def test_masked_rows_are_zero_whatever_they_hold(self, dtype, chunk):
    hidden, head, targets, g = problem(20, 16, 300, dtype)
    mask = jnp.arange(20) % 3 > 0
    bad = jnp.where(jnp.arange(20) % 2 == 0, jnp.nan, jnp.inf).astype(dtype)
    dirty = jnp.where(mask[:, None], hidden, bad[:, None])
    options = (("chunk", chunk),)
    out, grads = values_and_grads(dirty, head, targets, g, options, mask)
    for a in (*out, grads[0]):
      self.assertTrue((np.asarray(a)[::3] == 0).all())
    rows = np.flatnonzero(mask)
    kept, kept_grads = values_and_grads(
      hidden[rows], head, targets[rows], g[:, rows], options
    )
    for a, b in zip(out, kept, strict=True):
      np.testing.assert_allclose(a[rows], b, atol=1e-6)
    tolerance = 1e-6 if dtype == jnp.float32 else 8e-3
    assert_close(grads[0][rows], np.asarray(kept_grads[0], float), tolerance)
    assert_close(grads[1], np.asarray(kept_grads[1], float), tolerance)

  def test_masks_of_all_ones_and_all_zeros(self):
    hidden, head, targets, g = problem(12, 16, 300)
    plain = values_and_grads(hidden, head, targets, g, ())
    ones = values_and_grads(hidden, head, targets, g, (), jnp.ones(12, bool))
    chex.assert_trees_all_equal(plain, ones)
    none = values_and_grads(
      hidden * jnp.nan, head, targets, g, (), jnp.zeros(12)
    )
    for a in jax.tree.leaves(none):
      np.testing.assert_array_equal(a, np.zeros_like(a))

  def test_the_logit_gradient_sums_to_zero(self):
    # Equal columns of W: adding to all logits of a row changes no logprob.
    hidden, head, targets, g = problem(24, 16, 1003)
    head = head.at[:, 0].set(1.0)
    g = g.at[2].set(0.0).at[:, 1:3].set(0.0)
    _, (d_hidden, _) = values_and_grads(
      hidden, head, targets, g, (("chunk", 256),)
    )
    np.testing.assert_allclose(d_hidden[:, 0], np.zeros(24), atol=2e-6)

  def test_bounds(self):
    hidden, head, targets, _ = problem(64, 32, 1003)
    out = token_logprob(3 * hidden, head, targets)
    inside = np.r_[0, 3:64]
    self.assertLessEqual(float(out.logprob[inside].max()), 1e-5)
    self.assertLessEqual(float(out.entropy.max()), np.log(1003))
    self.assertGreaterEqual(float(out.entropy.min()), 0)

  def test_large_logits_do_not_overflow(self):
    hidden, head, targets, g = problem(9, 16, 300)
    hidden = 1e4 * hidden
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    out, grads = values_and_grads(hidden, head, targets, g, (("chunk", 128),))
    # e^-gap of the second largest logit is 0 in float64 as well.
    assert_close(out.logsumexp, logits.max(axis=1), 2e-6)
    chex.assert_tree_all_finite(grads)

  def test_finite_differences_in_float64(self):
    with jax.enable_x64(True):
      hidden, head, targets, g = problem(4, 5, 37, jnp.float64)

      @jax.jit
      def loss(hidden, head):
        out = token_logprob(
          hidden, head, targets, chunk=16, softcap=4.0, inv_temperature=0.8
        )
        return sum((a * b).sum() for a, b in zip(out, g, strict=True))

      jax.test_util.check_grads(
        loss, (hidden, head), order=1, modes=["rev"], atol=1e-6, rtol=1e-6
      )

  def test_a_traced_temperature_has_no_gradient(self):
    hidden, head, targets, _ = problem(8, 16, 300)

    def loss(inv_temperature):
      return token_logprob(
        hidden, head, targets, inv_temperature=inv_temperature
      ).logprob.sum()

    value, grad = jax.jit(jax.value_and_grad(loss))(0.5)
    np.testing.assert_allclose(value, loss(0.5), rtol=1e-6)
    self.assertEqual(float(grad), 0.0)

  def test_entropy_can_be_left_out(self):
    hidden, head, targets, _ = problem(8, 16, 300)
    full = token_logprob(hidden, head, targets)
    out = token_logprob(hidden, head, targets, with_entropy=False)
    self.assertIsNone(out.entropy)
    np.testing.assert_array_equal(out.logprob, full.logprob)

  def test_vmap_agrees_with_rows(self):
    hidden, head, targets, _ = problem(12, 16, 300)

    @jax.jit
    def run(hidden, targets):
      return token_logprob(hidden, head, targets, chunk=128).logprob

    batched = jax.vmap(run)(hidden.reshape(3, 4, 16), targets.reshape(3, 4))
    np.testing.assert_allclose(
      batched.reshape(-1), run(hidden, targets), atol=1e-5
    )

  def test_sharded_rows_give_the_same_update(self):
    devices = np.array(jax.devices()[:4])
    mesh = jax.sharding.Mesh(devices, ("data",))
    hidden, head, targets, g = problem(16, 16, 300)
    spec = jax.sharding.PartitionSpec("data")
    place = jax.sharding.NamedSharding(mesh, spec)
    options = (("chunk", 128),)
    one = values_and_grads(hidden, head, targets, g, options)
    split = [jax.device_put(a, place) for a in (hidden, targets)]
    many = values_and_grads(split[0], head, split[1], g, options)
    chex.assert_trees_all_close(one, many, atol=1e-5)


class CostTest(chex.TestCase):
  def loss_grads(self, entropy_weight=0.0):
    def loss(hidden, head, targets):
      out = token_logprob(hidden, head, targets, chunk=512)
      logged = jax.lax.stop_gradient(out.entropy).mean()
      used = entropy_weight * out.entropy.sum() if entropy_weight else 0.0
      return out.logprob.sum() + used, logged

    return jax.value_and_grad(loss, (0, 1), has_aux=True)

  def test_no_array_of_tokens_by_vocabulary_exists(self):
    hidden, head, targets, _ = problem(256, 32, 4096 + 100)
    program = jax.jit(self.loss_grads(0.1)).lower(hidden, head, targets)
    for text in (program.as_text(), program.compile().as_text()):
      self.assertIn("512", text)
      for shape in ("256x4196", "256,4196", "4196x256x", "4196,256]"):
        self.assertNotIn(shape, text)

  def test_temporary_memory_is_a_few_tiles(self):
    tokens, width, vocab = 512, 32, 16384
    hidden, head, targets, _ = problem(tokens, width, vocab)
    program = jax.jit(self.loss_grads(0.1)).lower(hidden, head, targets)
    temporary = program.compile().memory_analysis().temp_size_in_bytes
    tile, logits = 4 * tokens * 512, 4 * tokens * vocab
    grads = 4 * (tokens + vocab) * width
    self.assertLess(temporary, 6 * tile + 2 * grads)
    self.assertLess(temporary, logits / 2)

  def count_products(self, function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("dot_general[")

  def test_what_nothing_differentiates_costs_nothing(self):
    hidden, head, targets, _ = problem(32, 16, 512)

    def loss(hidden, head):
      return token_logprob(hidden, head, targets).logprob.sum()

    both = self.count_products(jax.grad(loss, (0, 1)), hidden, head)
    frozen_head = self.count_products(jax.grad(loss, 0), hidden, head)
    frozen_body = self.count_products(jax.grad(loss, 1), hidden, head)
    self.assertLess(frozen_head, both)
    self.assertLess(frozen_body, both)

  def test_the_default_chunk_follows_size_and_platform(self):
    self.assertEqual(xla.chunk_size(4096, 4096), 4096)
    self.assertEqual(49152 % xla.chunk_size(384, 49152, "cpu"), 0)
    for platform in ("cpu", "default"):
      for tokens in (1, 384, 4096, 65536):
        for vocab in (1, 128, 32000, 32003, 151936):
          chunk = xla.chunk_size(tokens, vocab, platform)
          self.assertBetween(chunk, min(vocab, 128), 8192)

  def test_lowers_for_accelerators_from_the_cpu(self):
    hidden, head, targets, _ = problem(32, 16, 1003, jnp.bfloat16)
    for platform in ("cuda", "tpu"):
      traced = jax.jit(self.loss_grads()).trace(hidden, head, targets)
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      self.assertNotIn("LayoutConstraint", text)


class RefusalTest(chex.TestCase):
  @parameterized.parameters(
    ({"head_layout": "xy"}, ValueError, "head_layout is 'vd' or 'dv'"),
    ({"head_layout": "dv"}, ValueError, "needs hidden"),
    ({"impl": "magic"}, ValueError, "impl is one of"),
    ({"softcap": 0.0}, ValueError, "softcap must be positive"),
    ({"chunk": 0}, ValueError, "chunk must be at least 1"),
    ({"mask": jnp.ones(3)}, ValueError, "mask must be"),
  )
  def test_bad_arguments_are_refused(self, options, error, message):
    hidden, head, targets, _ = problem(8, 16, 300)
    with self.assertRaisesRegex(error, message):
      token_logprob(hidden, head, targets, **options)

  def test_float_targets_are_refused(self):
    hidden, head, targets, _ = problem(8, 16, 300)
    with self.assertRaisesRegex(TypeError, "targets must be integers"):
      token_logprob(hidden, head, targets.astype(float))
