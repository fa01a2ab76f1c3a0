"""reverse_scan: identities, cuts, padding, tiles; what it needs on a TPU."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, blocks, reverse_scan
from pallas_kernels.reverse_scan import tpu, xla

IMPLS = ("reference", "xla", "interpret")
scan = reverse_scan.reverse_scan


def mesh_of(size):
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh(
    (size,), ("n",), axis_types=auto, devices=jax.devices()[:size]
  )


def problem(n=5, t=7, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  decay = jax.random.uniform(keys[0], (n, t), minval=0.5)
  x = jax.random.normal(keys[1], (n, t))
  return decay, x, jax.random.normal(keys[2], (n,))


class ReverseScanTest(chex.TestCase):
  @parameterized.parameters(*IMPLS)
  def test_solves_the_recurrence(self, impl):
    """Checked by its residual, whatever the order of the sums."""
    decay, x, init = problem(5, 300)
    y = np.asarray(scan(decay, x, init=init, impl=impl), np.float64)
    later = np.concatenate([y[:, 1:], np.asarray(init)[:, None]], axis=1)
    np.testing.assert_allclose(y, x + decay * later, atol=2e-6)

  @parameterized.parameters(*IMPLS)
  def test_a_token_that_takes_no_time_passes_the_next_one_through(self, impl):
    decay, x, init = problem(5, 140)
    hole = jax.random.bernoulli(jax.random.key(1), 0.4, x.shape)
    decay, x = jnp.where(hole, 1.0, decay), jnp.where(hole, 0.0, x)
    y = scan(decay, x, init=init, impl=impl)
    later = jnp.concatenate([y[:, 1:], init[:, None]], axis=1)
    same = jnp.where(hole, y - later, 0.0)
    # The kernel multiplies by products of decays, the loop by each in turn.
    np.testing.assert_allclose(
      same, 0.0, atol=2e-6 if impl == "interpret" else 0
    )

  @parameterized.parameters(*IMPLS)
  def test_init_is_one_more_token(self, impl):
    decay, x, init = problem(5, 20)
    more = jnp.concatenate([x, init[:, None]], axis=1)
    longer = jnp.concatenate([decay, jnp.zeros((5, 1))], axis=1)
    np.testing.assert_allclose(
      scan(decay, x, init=init, impl=impl),
      scan(longer, more, impl=impl)[:, :-1],
      atol=2e-6,
    )

  @parameterized.product(impl=IMPLS, junk=(np.nan, np.inf))
  def test_a_decay_of_zero_cuts(self, impl, junk):
    decay, x, init = problem(3, 140)
    cut = 70
    decay = decay.at[:, cut].set(0.0)
    dirty = x.at[:, cut + 1 :].set(junk)

    def tail(decay, x):
      y = scan(decay, x, init=init * junk, impl=impl)
      return y[:, : cut + 1].sum(), y

    grads, y = jax.grad(tail, (0, 1), has_aux=True)(decay, dirty)
    clean = scan(decay, x, init=init, impl=impl)
    np.testing.assert_array_equal(y[:, : cut + 1], clean[:, : cut + 1])
    self.assertFalse(np.isfinite(y[:, cut + 1 :]).any())
    chex.assert_tree_all_finite((grads[0][:, : cut + 1], grads[1]))

  @parameterized.parameters(*IMPLS)
  def test_without_a_cut_nan_spreads_to_its_own_row_and_past_only(self, impl):
    decay, x, _ = problem(3, 140)
    y = scan(decay, x.at[1, 60].set(jnp.nan), impl=impl)
    wrong = np.zeros(x.shape, bool)
    wrong[1, :61] = True
    np.testing.assert_array_equal(np.isnan(y), wrong)

  @parameterized.parameters(*IMPLS)
  def test_a_decay_of_zero_has_a_gradient(self, impl):
    """d y_0 / d decay_0 = y_1, also at 0."""
    decay, x, init = jnp.zeros((1, 2)), jnp.ones((1, 2)) * 3, jnp.ones(1)
    slope = jax.grad(lambda d: scan(d, x, init=init, impl=impl)[0, 0])(decay)
    np.testing.assert_array_equal(slope, [[3.0, 0.0]])

  def test_results_are_float32_or_wider(self):
    decay, x, init = problem()
    half = [a.astype(jnp.bfloat16) for a in (decay, x, init)]
    for impl in IMPLS:
      y = scan(half[0], half[1], init=half[2], impl=impl)
      self.assertEqual(y.dtype, jnp.float32)
    with jax.enable_x64(True):
      y = scan(decay, x.astype(jnp.float64))
      self.assertEqual(y.dtype, jnp.float64)
      self.assertEqual(scan(decay, x).dtype, jnp.float32)

  def test_large_arrays_go_in_blocks_of_rows_on_the_cpu(self):
    decay, x, init = problem(1056, 1000)
    expected = scan(decay, x, init=init, impl="reference")
    with jax.set_mesh(mesh_of(1)):
      self.assertEqual(xla._cpu_rows(64, 512), 64)
      self.assertEqual(xla._cpu_rows(1056, 1000), 32)
      self.assertEqual(xla._cpu_rows(4096, 1024), 32)
      self.assertEqual(xla._cpu_rows(4096, 8192), 16)
      self.assertEqual(xla._cpu_rows(4099, 1024), 4099)  # a prime
      actual = scan(decay, x, init=init, impl="xla")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

  def test_works_in_shard_map_where_only_some_arguments_are_split(self):
    mesh = mesh_of(1)
    rows, whole = jax.P("n"), jax.P()
    decay, x, init = problem()

    def loss(decay, x, init):
      split = jax.shard_map(
        functools.partial(lambda d, x, i: scan(d, x, init=i, impl="xla")),
        mesh=mesh,
        in_specs=(whole, rows, rows),
        out_specs=rows,
      )
      return (split(decay, x, init) ** 2).sum()

    every = jax.jit(jax.grad(loss, (0, 1, 2)))(decay, x, init)
    alone = jax.grad(
      lambda *a: (scan(*a[:2], init=a[2], impl="reference") ** 2).sum(),
      (0, 1, 2),
    )(decay, x, init)
    chex.assert_trees_all_close(every, alone, atol=1e-4)

  @parameterized.parameters(
    ((5, 7), (5, 8), None), ((5,), (5,), None), ((5, 0), (5, 0), None),
    ((5, 7), (5, 7), (7,)), ((5, 7), (5, 7), (5, 1)),
  )  # fmt: skip
  def test_shapes_that_do_not_fit_are_refused(self, decay, x, init):
    init = None if init is None else jnp.ones(init)
    with self.assertRaisesRegex(ValueError, r"decay \[N, T\], x \[N, T\]"):
      scan(jnp.ones(decay), jnp.ones(x), init=init)

  def test_a_mask_as_decay_is_refused(self):
    with self.assertRaisesRegex(TypeError, "got bool; cast it"):
      scan(jnp.ones((2, 3), bool), jnp.ones((2, 3)))


class KernelTest(chex.TestCase):
  @parameterized.parameters((16, 128), (32, 256), (16, 512))
  def test_does_not_depend_on_the_tile(self, *tile):
    """40 and 300 are multiples of no tile: its overhang is NaN here."""
    decay, x, init = problem(40, 300)
    found = tpu.scan(decay, x, init, interpret=True, tile=tile)
    expected = xla.scan(decay, x, init)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = tpu.adjoint(decay, x, interpret=True, tile=tile)
    expected = xla.adjoint(decay, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

  def test_takes_no_float64_and_no_empty_array(self):
    with (
      jax.enable_x64(True),
      self.assertRaisesRegex(
        blocks.Unsupported, "takes float32 and bfloat16, got"
      ),
    ):
      scan(jnp.ones((2, 3)), jnp.ones((2, 3)), impl="pallas")
    nothing = jnp.ones((0, 3))
    with self.assertRaisesRegex(blocks.Unsupported, "no empty array"):
      scan(nothing, nothing, impl="pallas")
    self.assertEqual(scan(nothing, nothing).shape, (0, 3))

  @parameterized.parameters((8, 128), (16, 100), (0, 128))
  def test_tiles_that_are_none_are_refused(self, *tile):
    decay, x, _ = problem()
    with self.assertRaisesRegex(blocks.Unsupported, "multiples of 16 and 128"):
      tpu.scan(decay, x, None, interpret=True, tile=tile)

  def test_a_tile_that_vmem_does_not_hold_is_refused_with_numbers(self):
    decay, x, _ = problem()
    with self.assertRaisesRegex(blocks.Unsupported, r"needs .* MiB of VMEM"):
      tpu.scan(decay, x, None, interpret=True, tile=(4096, 4096))

  def test_arithmetic_of_vmem(self):
    group = 13 * 256 * 128 * 4
    tile = 256 * 512
    f32, bf16 = jnp.float32, jnp.bfloat16
    self.assertEqual(tpu.vmem_bytes((256, 512), f32, f32), 24 * tile + group)
    self.assertEqual(tpu.vmem_bytes((256, 512), bf16, f32), 20 * tile + group)


def _values_and_gradients(impl, decay, x, init, g):
  def run(decay, x, init):
    return scan(decay, x, init=init, impl=impl)

  y, pull = jax.vjp(run, decay, x, init)
  return y, *pull(g)


def _shapes(n, t, dtype=jnp.float32):
  tokens = jax.ShapeDtypeStruct((n, t), dtype)
  return tokens, tokens, jax.ShapeDtypeStruct((n,), dtype)


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_kernel_has_no_temporaries_at_real_size(chip):
  n, t = 4096, 8192
  decay, x, init = _shapes(n, t)
  few = 0.01 * n * t * 4
  auto = aot.compile_for(chip, scan, decay, x)
  assert auto.memory_analysis().temp_size_in_bytes < few
  both = functools.partial(_values_and_gradients, "pallas")
  compiled = aot.compile_for(chip, both, decay, x, init, x)
  assert compiled.memory_analysis().temp_size_in_bytes < few


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 129)])
def test_kernel_compiles_for_ragged_sizes(size, dtype):
  decay, x, init = _shapes(*size, dtype)
  g = jax.ShapeDtypeStruct(size, jnp.float32)
  both = functools.partial(_values_and_gradients, "pallas")
  aot.compile_for("v4", both, decay, x, init, g)


def test_default_lowers_for_cuda_without_the_kernel():
  decay, x, init = _shapes(64, 256)
  both = functools.partial(_values_and_gradients, "auto")
  with jax.set_mesh(mesh_of(1)):  # one device, so that the kernel is on offer
    traced = jax.jit(both).trace(decay, x, init, x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "tpu" in str(traced.jaxpr)
  assert "custom_call" not in text
