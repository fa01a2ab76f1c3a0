"""The Pallas kernels of token_logprob, interpreted: traps and refusals."""

import os
from unittest import mock
import warnings

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import blocks, dispatch
from pallas_kernels import token_logprob as package
from pallas_kernels.token_logprob import tiles, tpu_forward, xla

Tile, Blocks = package.Tile, package.Blocks
TILES = Blocks(*[Tile(128, 256)] * 3)
WIDTH = 128


def problem(tokens, vocab, dtype=jnp.float32):
  rng = np.random.default_rng(tokens + vocab)
  hidden = jnp.asarray(rng.normal(size=(tokens, WIDTH)), dtype)
  head = jnp.asarray(0.1 * rng.normal(size=(vocab, WIDTH)), dtype)
  targets = jnp.asarray(rng.integers(0, vocab, tokens), jnp.int32)
  return hidden, head, targets


def call(hidden, head, targets, **options):
  options = {"impl": "interpret", "blocks": TILES} | options
  return package.token_logprob(hidden, head, targets, **options)


def gradients(hidden, head, targets, **options):
  def loss(hidden, head):
    out = call(hidden, head, targets, backward="pallas", **options)
    return out.logprob.sum() + 0.3 * out.entropy.sum()

  return jax.jit(jax.grad(loss, (0, 1)))(hidden, head)


class TrapTest(chex.TestCase):
  def test_undefined_memory_beyond_the_arrays_reaches_nothing(self):
    # Interpret mode fills it with NaN: 300 tokens and 301 columns leave some.
    hidden, head, targets = problem(300, 301)
    chex.assert_tree_all_finite(call(hidden, head, targets))
    chex.assert_tree_all_finite(gradients(hidden, head, targets))

  def test_targets_on_the_overhang_match_nothing(self):
    hidden, head, _ = problem(8, 300)
    targets = jnp.asarray([300, 301, 511, 512, -1, -300, 10**6, 299])
    out = call(hidden, head, targets)
    np.testing.assert_array_equal(out.logprob[:7], -out.logsumexp[:7])
    self.assertNotEqual(float(out.logprob[7]), -float(out.logsumexp[7]))

  def test_lanes_that_saw_no_column_have_no_mass(self):
    # Three columns: 125 lanes keep the start of the maximum.
    hidden, head, targets = problem(8, 3)
    out = call(hidden, 0.0 * head, targets)
    np.testing.assert_allclose(out.logsumexp, np.full(8, np.log(3)), rtol=1e-6)
    np.testing.assert_allclose(out.entropy, np.full(8, np.log(3)), rtol=1e-6)

  def test_very_negative_logits_leave_no_nan(self):
    hidden, head, targets = problem(8, 300)
    for factor in (1e4, -1e4):
      out = call(factor * hidden, head, targets)
      chex.assert_tree_all_finite(out)

  def test_the_head_gradient_accumulates_in_float32(self):
    # 1 + 2^-9 + ... : in bfloat16 the small tiles would all be lost.
    tokens, vocab = 128 * 9, 128
    hidden = jnp.full((tokens, WIDTH), 2.0**-9, jnp.bfloat16)
    hidden = hidden.at[:128].set(1.0)
    head = jnp.zeros((vocab, WIDTH), jnp.bfloat16)
    targets = jnp.zeros(tokens, jnp.int32)
    small = Blocks(*[Tile(128, 128)] * 3)

    def loss(head):
      out = call(hidden, head, targets, backward="pallas", blocks=small)
      return out.logprob.sum()

    grad = jax.jit(jax.grad(loss))(head)
    exact = 128 * (1 + 8 * 2.0**-9) * (1 - 1 / vocab)
    np.testing.assert_allclose(float(grad[0, 0]), exact, rtol=2.0**-8)
    self.assertGreater(float(grad[0, 0]), 128 * (1 - 1 / vocab) * 1.008)

  def test_a_tile_without_tokens_is_not_read(self):
    hidden, head, targets = problem(384, 300)
    mask = (jnp.arange(384) < 128) | (jnp.arange(384) >= 256)
    spec = xla.Spec(blocks=TILES)
    scale = jnp.float32(1)
    bad = jnp.where(mask[:, None], hidden, jnp.nan)
    out = tpu_forward.forward(
      bad, head, targets, scale, mask, spec=spec, interpret=True
    )
    for values in out:
      np.testing.assert_array_equal(values[128:256], np.zeros(128))
      self.assertTrue(bool(jnp.all(values[np.asarray(mask)] != 0)))

  def test_a_tile_without_tokens_freezes_the_block_of_the_head(self):
    flags = jnp.asarray([1, 0])
    step = jnp.int32(5)
    self.assertEqual(int(tpu_forward.frozen(0, step, flags, None)), 5)
    self.assertEqual(int(tpu_forward.frozen(1, step, flags, None)), 0)

  def test_masked_rows_may_hold_anything(self):
    hidden, head, targets = problem(140, 300)
    mask = jnp.arange(140) % 3 > 0
    bad = jnp.where(mask[:, None], hidden, jnp.nan)
    clean = gradients(hidden, head, targets, mask=mask)
    dirty = gradients(bad, head, targets, mask=mask)
    chex.assert_trees_all_equal(clean, dirty)
    np.testing.assert_array_equal(clean[0][::3], np.zeros((47, WIDTH)))

  def test_tiles_do_not_change_the_result(self):
    hidden, head, targets = problem(300, 601)
    first = call(hidden, head, targets)
    for tile in ((128, 128), (384, 640)):
      other = call(hidden, head, targets, blocks=Blocks(Tile(*tile)))
      chex.assert_trees_all_close(first, other, atol=3e-6)


class CostTest(chex.TestCase):
  def names(self, wanted, **options):
    hidden, head, targets = problem(8, 300)

    def loss(hidden, head):
      return call(
        hidden, head, targets, backward="pallas", **options
      ).logprob.sum()

    text = str(jax.make_jaxpr(jax.grad(loss, wanted))(hidden, head))
    names = ("forward", "dx", "dw")
    return {k for k in names if f"name=token_logprob_{k}" in text}

  def test_what_nothing_differentiates_costs_nothing(self):
    self.assertEqual(self.names((0, 1)), {"forward", "dx", "dw"})
    self.assertEqual(self.names((0,)), {"forward", "dx"})
    self.assertEqual(self.names((1,)), {"forward", "dw"})

  def test_entropy_can_be_left_out(self):
    hidden, head, targets = problem(8, 300)
    full = call(hidden, head, targets)
    out = call(hidden, head, targets, with_entropy=False)
    self.assertIsNone(out.entropy)
    np.testing.assert_array_equal(out.logprob, full.logprob)

  def test_vmap_agrees_with_rows(self):
    hidden, head, targets = problem(12, 300)
    rows = call(hidden, head, targets)
    many = jax.vmap(lambda x, y: call(x, head, y))(
      hidden.reshape(3, 4, WIDTH), targets.reshape(3, 4)
    )
    many = jax.tree.map(jnp.ravel, many)
    chex.assert_trees_all_close(many, rows, atol=2e-6)


class ChoiceTest(chex.TestCase):
  @parameterized.parameters(
    ({"width": 96}, "multiple of 128.*96"),
    ({"dtype": jnp.float16}, "float32 and bfloat16, got hidden float16"),
    ({"tile": (4096, 4096)}, r"needs \d+\.\d MiB of VMEM.* v4 may have 14.9"),
  )
  def test_refusals_name_what_is_wrong(self, what, message):
    width, dtype = what.get("width", 128), what.get("dtype", jnp.float32)
    hidden = jnp.zeros((8, width), dtype)
    head, targets = jnp.zeros((300, width), dtype), jnp.zeros(8, int)
    chosen = Blocks(Tile(*what["tile"])) if "tile" in what else None
    for impl in ("pallas", "interpret"):
      with self.assertRaisesRegex(blocks.Unsupported, message):
        call(hidden, head, targets, impl=impl, blocks=chosen)

  def test_tiles_are_multiples_of_lanes(self):
    hidden, head, targets = problem(8, 300)
    with self.assertRaisesRegex(ValueError, "multiples of 128, got Tile"):
      call(hidden, head, targets, blocks=Blocks(Tile(100, 128)))

  def test_backward_is_one_of_two(self):
    hidden, head, targets = problem(8, 300)
    with self.assertRaisesRegex(ValueError, "backward is 'xla' or 'pallas'"):
      call(hidden, head, targets, backward="chunks")

  def test_the_environment_chooses(self):
    hidden, head, targets = problem(8, 300)

    def program():
      return str(
        jax.make_jaxpr(lambda *a: call(*a, impl=None))(hidden, head, targets)
      )

    self.assertNotIn("token_logprob_forward", program())
    with mock.patch.dict(os.environ, JAXRL_KERNELS="token_logprob=interpret"):
      self.assertIn("token_logprob_forward", program())

  @parameterized.parameters((1024, 32768, True), (1024, 1024, False))
  def test_auto_takes_the_kernel_for_large_problems_on_tpu(
    self, tokens, vocab, large
  ):
    shapes = [
      jax.ShapeDtypeStruct(shape, dtype)
      for shape, dtype in (
        ((tokens, WIDTH), jnp.bfloat16),
        ((vocab, WIDTH), jnp.bfloat16),
        ((tokens,), jnp.int32),
      )
    ]
    with mock.patch.object(dispatch, "on_one_device", lambda: True):
      traced = jax.jit(package.token_logprob).trace(*shapes)
      for platform in ("tpu", "cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = "tpu_custom_call" in text
        self.assertEqual(found, large and platform == "tpu", platform)

  def test_auto_falls_back_where_the_kernel_refuses(self):
    shapes = [
      jax.ShapeDtypeStruct((1024, 96), jnp.bfloat16),
      jax.ShapeDtypeStruct((32768, 96), jnp.bfloat16),
      jax.ShapeDtypeStruct((1024,), jnp.int32),
    ]
    with (
      mock.patch.object(dispatch, "on_one_device", lambda: True),
      mock.patch.object(dispatch, "_kind", lambda: "TPU v5e"),
      warnings.catch_warnings(record=True) as caught,
    ):
      warnings.simplefilter("always")
      traced = jax.jit(package.token_logprob).trace(*shapes)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    self.assertNotIn("tpu_custom_call", text)
    messages = [str(w.message) for w in caught]
    self.assertTrue(any("multiple of 128" in m for m in messages), messages)

  def test_lowers_in_shard_map_with_check_vma(self):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows, whole = jax.P("data"), jax.P()

    def loss(hidden, head, targets):
      out = package.token_logprob(
        hidden,
        jax.lax.pcast(head, "data", to="varying"),
        targets,
        impl="pallas",
        backward="pallas",
      )
      return jax.lax.psum(out.logprob.sum() + out.entropy.sum(), "data")

    mapped = jax.shard_map(
      loss, mesh=mesh, in_specs=(rows, whole, rows), out_specs=whole
    )
    hidden, head, targets = problem(512, 300, jnp.bfloat16)
    traced = jax.jit(jax.grad(mapped, (0, 1))).trace(hidden, head, targets)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    self.assertEqual(text.count("tpu_custom_call"), 3)

  @parameterized.parameters(*blocks.CHIPS)
  def test_the_best_tile_that_fits_is_taken(self, chip):
    hidden = jax.ShapeDtypeStruct((1024, 2048), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)
    kind = blocks.CHIPS[chip].kinds[0]
    with mock.patch.object(dispatch, "_kind", lambda: kind):
      for kernel in ("forward", "dx", "dw"):
        chosen = tiles.choose(kernel, hidden, head, xla.Spec())
        needed = tiles.vmem_bytes(
          kernel, 2048, hidden.dtype, head.dtype, chosen
        )
        self.assertLessEqual(needed, blocks.CHIPS[chip].limit)
        self.assertEqual(
          chosen.tokens >= 512, chip != "v4" or kernel == "forward"
        )
