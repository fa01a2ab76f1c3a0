"""group_stats: properties, exact zeros, what does not count, memory."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, group_stats
from pallas_kernels.group_stats import xla

FORMS = (
  {},
  {"form": "one_hot", "num_segments": 40},
  {"impl": "reference"},
)
each_form = parameterized.parameters(*({"options": form} for form in FORMS))


def items(rows=3, size=50, segments=7, seed=0):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(rows, size)), jnp.float32)
  ids = jnp.asarray(rng.integers(0, segments, (rows, size)), jnp.int32)
  return x, ids, jnp.asarray(rng.random((rows, size)) < 0.8)


def by_hand(x, ids, mask, *, ddof=1, eps=1e-4):
  """segment_normalize in float64, an item at a time."""
  x, ids, mask = (np.asarray(a) for a in (x, ids, mask))
  out = np.zeros(x.shape)
  for b, k in zip(*np.nonzero(mask), strict=True):
    own = x[b, mask[b] & (ids[b] == ids[b, k])].astype(np.float64)
    squares = np.sum((own - own.mean()) ** 2) / max(len(own) - ddof, 1)
    out[b, k] = (x[b, k] - own.mean()) / (np.sqrt(squares) + eps)
  return out


def jitted(options):
  return jax.jit(functools.partial(group_stats.segment_normalize, **options))


class GroupTest(chex.TestCase):
  @parameterized.product(
    center=("mean", "leave_one_out"), scale=(None, "std"), size=(2, 6)
  )
  def test_shift_order_and_sum(self, center, scale, size):
    rng = np.random.default_rng(size)
    rewards = jnp.asarray(rng.integers(0, 9, 4 * size), jnp.float32)
    run = lambda r: group_stats.group_normalize(
      r, size, center=center, scale=scale
    )
    out = run(rewards)
    np.testing.assert_array_equal(run(rewards + 64), out)
    np.testing.assert_allclose(out.reshape(4, size).sum(axis=1), 0, atol=1e-5)
    order = (size * np.arange(4)[:, None] + rng.permutation(size)).reshape(-1)
    np.testing.assert_allclose(run(rewards[order]), out[order], atol=1e-5)
    if scale:
      tiny = group_stats.group_normalize(rewards, size, eps=1e-9)
      large = group_stats.group_normalize(50 * rewards, size, eps=1e-9)
      np.testing.assert_allclose(large, tiny, rtol=1e-5, atol=1e-6)

  def test_leave_one_out_compares_with_the_siblings(self):
    rewards = np.array([1.0, 0.5, 0.0, 3.0, 2.0], np.float32)
    means, scores = [], []
    for i in range(5):
      others = np.delete(rewards.astype(np.float64), i)
      means.append(rewards[i] - others.mean())
      scores.append(means[-1] / (others.std(ddof=1) + 1e-4))
    knobs = {"center": "leave_one_out"}
    run = lambda scale: group_stats.group_normalize(
      jnp.asarray(rewards), 5, scale=scale, **knobs
    )
    np.testing.assert_allclose(run(None), means, rtol=1e-6)
    np.testing.assert_allclose(run("leave_one_out"), scores, rtol=1e-5)

  @parameterized.parameters("xla", "reference")
  def test_equal_rewards_give_exactly_zero_for_any_constant(self, impl):
    rng = np.random.default_rng(0)
    wide = rng.uniform(-1, 1, 400) * 10.0 ** rng.integers(-30, 30, 400)
    constants = np.concatenate([wide, rng.uniform(-2, 2, 400), [0.9]])
    rewards = jnp.asarray(np.repeat(constants, 8), jnp.float32)
    for center, scale in (
      ("mean", "std"),
      ("leave_one_out", None),
      ("leave_one_out", "leave_one_out"),
    ):
      out = group_stats.group_normalize(
        rewards, 8, center=center, scale=scale, impl=impl
      )
      np.testing.assert_array_equal(out, 0.0)
    found = group_stats.group_moments(rewards, 8, impl=impl)
    self.assertTrue(bool(found.equal.all()))
    np.testing.assert_array_equal(found.mean[:, 0], rewards[::8])

  @parameterized.parameters("xla", "reference")
  def test_one_counted_row_and_none(self, impl):
    rewards = jnp.asarray([5.0, jnp.nan, jnp.inf, jnp.inf, jnp.nan, -jnp.inf])
    mask = jnp.asarray([1, 0, 0, 0, 0, 0])
    found = group_stats.group_moments(rewards, 3, mask=mask, impl=impl)
    np.testing.assert_array_equal(found.centred, np.zeros((2, 3)))
    np.testing.assert_array_equal(found.mean[:, 0], [5, 0])
    np.testing.assert_array_equal(found.count[:, 0], [1, 0])
    np.testing.assert_array_equal(found.std()[:, 0], [0, 0])
    np.testing.assert_array_equal(found.equal[:, 0], [True, True])

  def test_bfloat16_rewards_have_float32_statistics(self):
    rewards = jnp.asarray(100 + np.arange(8) % 4, jnp.bfloat16)
    out = group_stats.group_normalize(rewards, 4)
    self.assertEqual(out.dtype, jnp.float32)
    exact = group_stats.group_normalize(rewards.astype(jnp.float32), 4)
    np.testing.assert_array_equal(out, exact)


class SegmentTest(chex.TestCase):
  @each_form
  def test_equals_the_definition(self, options):
    x, ids, mask = items(size=53)
    out = jitted(options)(x, ids, mask)
    np.testing.assert_allclose(out, by_hand(x, ids, mask), atol=2e-6)

  @each_form
  def test_one_id_a_row_is_a_group(self, options):
    x, ids, mask = items(size=8)
    out = jitted(options)(x, 0 * ids + 3, mask)
    flat = group_stats.group_normalize(x.reshape(-1), 8, mask=mask.reshape(-1))
    np.testing.assert_allclose(out.reshape(-1), flat, atol=1e-6)

  @each_form
  def test_distinct_ids_and_equal_values_give_exactly_zero(self, options):
    x, ids, mask = items(size=40)
    alone = jnp.broadcast_to(jnp.arange(40)[None], x.shape)
    run = jitted(options)
    out = run(x, alone, mask)
    np.testing.assert_array_equal(out, 0.0)
    constants = jnp.asarray([0.1, 0.9, 1 / 3, 1000.7, -1e30, 1e-30, 7.3])
    out = run(constants[ids], ids, mask)
    np.testing.assert_array_equal(out, 0.0)

  @each_form
  def test_mean_and_std_sum_shift_and_order(self, options):
    x, ids, mask = items()
    x = jnp.round(8 * x)
    run = jitted(options)
    out = run(x, ids, mask)
    np.testing.assert_array_equal(run(x + 64, ids, mask), out)
    np.testing.assert_array_equal(out[~mask], 0.0)
    sums = jax.ops.segment_sum(out[1], ids[1], 7)
    np.testing.assert_allclose(sums, 0, atol=1e-5)
    order = np.random.default_rng(1).permutation(x.shape[1])
    moved = run(*(a[:, order] for a in (x, ids, mask)))
    np.testing.assert_allclose(moved, out[:, order], atol=1e-6)
    mean, std = jax.jit(
      lambda *args: (
        group_stats.segment_mean(*args, **options),
        group_stats.segment_std(*args, **options),
      )
    )(x, ids, mask)
    again = jnp.where(mask, (x - mean) / (std + 1e-4), 0)
    np.testing.assert_allclose(again, out, atol=1e-5)

  def test_ids_may_be_any_integers_and_be_compacted(self):
    x, ids, mask = items()
    codes = jnp.asarray([-(2**31), 2**31 - 1, -1, 0, 7, -9, 12], jnp.int32)
    wild = codes[ids]
    out = group_stats.segment_normalize(x, wild, mask)
    np.testing.assert_allclose(out, by_hand(x, ids, mask), atol=2e-6)
    dense = group_stats.compact_ids(wild, mask)
    expected = np.full(ids.shape, -1)
    for row, kept, found in zip(wild, mask, expected, strict=True):
      kept = np.asarray(kept)
      found[kept] = np.unique(np.asarray(row)[kept], return_inverse=True)[1]
    np.testing.assert_array_equal(dense, expected)
    compact = group_stats.segment_normalize(
      x, dense, mask, num_segments=7, form="one_hot"
    )
    np.testing.assert_allclose(compact, out, atol=2e-6)

  @parameterized.parameters({"form": "equality"}, {"form": "one_hot"})
  def test_an_id_outside_num_segments_does_not_count(self, form):
    x, ids, mask = items()
    options = {"num_segments": 5, "form": form}
    out = group_stats.segment_normalize(x, ids - 1, mask, **options)
    inside = mask & (ids >= 1) & (ids < 6)
    expected = group_stats.segment_normalize(x, ids, inside)
    np.testing.assert_allclose(out, expected, atol=2e-6)

  @parameterized.parameters(None, 7)
  def test_neither_matrix_has_to_fit(self, segments):
    x, ids, mask = items(rows=5, size=53)

    def run(entries):
      def loss(x):
        found = xla.segments(
          x, ids, mask, num_segments=segments, entries=entries
        )
        return (found.centred**3).sum() + found.std().sum(), found.centred

      return jax.jit(jax.grad(loss, has_aux=True))(x)

    whole = run(2**22)
    for entries in (2 * 53 * 53, 100):
      chex.assert_trees_all_close(run(entries), whole, atol=2e-5)

  def test_two_passes_keep_what_one_loses(self):
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 40, 512), jnp.int32)[None]
    x = jnp.asarray(rng.normal(size=(1, 512)) + 100, jnp.float32)
    exact = by_hand(x, ids, np.ones(x.shape, bool), ddof=0, eps=1e-6)
    for options in FORMS:
      knobs = {"ddof": 0, "eps": 1e-6, **options}
      out = jitted(knobs)(x, ids)
      self.assertLess(np.abs(out - exact).max(), 1e-6)
    ones = jnp.ones(512)
    columns = jnp.stack([x[0], x[0] ** 2, ones], axis=1)
    total, squares, count = jax.ops.segment_sum(columns, ids[0], 40).T
    mean = total / count
    std = jnp.sqrt(jnp.maximum(squares / count - mean**2, 0))
    one_pass = (x[0] - mean[ids[0]]) / (std[ids[0]] + 1e-6)
    self.assertGreater(np.abs(one_pass - exact[0]).max(), 1e-3)


class GradientTest(chex.TestCase):
  @parameterized.parameters("xla", "reference")
  def test_std_of_equal_values_has_gradient_zero(self, impl):
    std = lambda x: group_stats.group_moments(x, 8, impl=impl).std().sum()
    np.testing.assert_array_equal(jax.grad(std)(jnp.full(16, 0.9)), 0.0)

  def test_centring_has_its_own_gradient_where_all_are_equal(self):
    first = lambda x: group_stats.group_normalize(x, 4, scale=None)[0]
    grad = jax.grad(first)(jnp.full(4, 0.9))
    np.testing.assert_allclose(grad, [0.75, -0.25, -0.25, -0.25], rtol=1e-6)

  @each_form
  def test_padding_is_not_noticed(self, options):
    x, ids, mask = items()
    filled = jnp.where(mask, x, jnp.where(ids % 2 > 0, jnp.nan, jnp.inf))

    def loss(x):
      out = group_stats.segment_normalize(x, ids, mask, **options)
      std = group_stats.segment_std(x, ids, mask, **options)
      return (out**3).sum() + std.sum()

    run = jax.jit(jax.value_and_grad(loss))
    value, grad = run(filled)
    clean, clean_grad = run(jnp.where(mask, x, 0))
    np.testing.assert_array_equal(value, clean)
    np.testing.assert_array_equal(grad, clean_grad)
    np.testing.assert_array_equal(grad[~mask], 0.0)

  def test_padding_of_a_group_is_not_noticed(self):
    rewards = jnp.asarray([jnp.nan, 0.0, 1.0, jnp.inf, jnp.nan, jnp.inf])
    mask = jnp.asarray([False, True, True, False, False, False])

    def loss(rewards):
      scales = None, "std", "leave_one_out"
      return sum(
        (group_stats.group_normalize(rewards, 3, mask=mask, scale=s) ** 2).sum()
        for s in scales
      )

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(rewards))

  @parameterized.parameters({}, {"form": "one_hot", "num_segments": 3})
  def test_finite_differences_in_float64(self, **options):
    with jax.enable_x64(True):
      x, ids, mask = items(rows=2, size=9, segments=3)
      x = x.astype(jnp.float64)
      run = jax.jit(
        lambda x: group_stats.segment_normalize(
          x, ids, mask, eps=0.1, **options
        )
      )
      self.assertEqual(run(x).dtype, jnp.float64)
      jax.test_util.check_grads(run, (x,), order=1, atol=1e-6, rtol=1e-6)


def normalized(num_segments):
  def run(x, ids, mask):
    return group_stats.segment_normalize(
      x, ids, mask, num_segments=num_segments
    )

  return run


class CompiledTest(chex.TestCase):
  def shapes(self, rows, size):
    return tuple(
      jax.ShapeDtypeStruct((rows, size), dtype)
      for dtype in (jnp.float32, jnp.int32, bool)
    )

  @pytest.mark.skipif(not aot.available(), reason="needs libtpu")
  @parameterized.parameters("v5e", "v5p", "v6e")
  def test_no_equality_matrix_on_tpu(self, chip):
    program = aot.compile_for(chip, normalized(None), *self.shapes(256, 512))
    memory = program.memory_analysis().temp_size_in_bytes
    self.assertLess(memory, 0.01 * 4 * 256 * 512 * 512)

  @pytest.mark.skipif(not aot.available(), reason="needs libtpu")
  def test_no_one_hot_matrix_on_tpu(self):
    # Of v5e, v5p and v6e the one that keeps most; 6 s of compiling each.
    run, shapes = normalized(4096), self.shapes(1, 131072)
    program = aot.compile_for("v5p", run, *shapes)
    memory = program.memory_analysis().temp_size_in_bytes
    self.assertLess(memory, 0.01 * 4 * 131072 * 4096)

  @parameterized.parameters(None, 64)
  def test_memory_is_bounded_where_nothing_is_fused(self, num_segments):
    run = lambda *args: normalized(num_segments)(*args).sum()
    program = jax.jit(jax.grad(run)).lower(*self.shapes(64, 2048)).compile()
    memory = program.memory_analysis().temp_size_in_bytes
    self.assertLess(memory, 6 * 4 * xla.ENTRIES)

  @parameterized.parameters(None, 64)
  def test_lowers_for_cuda_from_the_cpu(self, num_segments):
    traced = jax.jit(normalized(num_segments)).trace(*self.shapes(2, 2048))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    self.assertEqual("dot_general" in text, num_segments is not None)
    self.assertNotIn("scatter", text)


class RefusalTest(chex.TestCase):
  @parameterized.parameters(
    ({"center": "median"}, "center is"),
    ({"scale": "range"}, "scale is one of"),
    ({"eps": 0.0}, "eps must be positive"),
    ({"ddof": 2}, "ddof must be 0 or 1"),
    ({"impl": "pallas"}, "impl is one of"),
    ({"mask": jnp.ones(3)}, "mask must be"),
  )
  def test_bad_arguments_are_refused(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      group_stats.group_normalize(jnp.ones(8), 4, **options)
    if "mask" in options:
      options = {"mask": jnp.ones((2, 3))}
    with self.assertRaisesRegex(ValueError, message):
      group_stats.segment_normalize(
        jnp.ones((2, 4)), jnp.zeros((2, 4), int), **options
      )

  @parameterized.parameters(
    {"scale": "leave_one_out"},
    {"form": "sort"},
    {"form": "one_hot"},
    {"num_segments": 0},
  )
  def test_segments_refuse_what_only_groups_take(self, **options):
    with self.assertRaises(ValueError):
      group_stats.segment_normalize(
        jnp.ones((2, 4)), jnp.zeros((2, 4), int), **options
      )

  def test_shapes_and_kinds(self):
    with self.assertRaisesRegex(ValueError, "divides N, got \\(7,\\) and 4"):
      group_stats.group_moments(jnp.ones(7), 4)
    with self.assertRaisesRegex(ValueError, "of one shape"):
      group_stats.segment_mean(jnp.ones((2, 3)), jnp.zeros((2, 4), int))
    with self.assertRaisesRegex(TypeError, "ids must be integers"):
      group_stats.segment_std(jnp.ones((2, 3)), jnp.ones((2, 3)))
