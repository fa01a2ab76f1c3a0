"""The vocabulary split over devices against the unsplit op and float64."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot
from pallas_kernels import token_logprob as package

P = jax.sharding.PartitionSpec
TOLERANCE = {"float32": (2e-6, 5e-6), "bfloat16": (2e-6, 8e-3)}
MATHS = {"softcap": 2.0, "inv_temperature": 0.7}


def make_mesh(tensor, data=1):
  devices = np.array(jax.devices()[: tensor * data]).reshape(data, tensor)
  return jax.sharding.Mesh(devices, ("data", "tensor"))


def problem(tokens=24, width=16, vocab=1000, dtype="float32"):
  """Targets at the borders of the shards and outside of the vocabulary."""
  rng = np.random.default_rng(tokens + vocab)
  hidden = jnp.asarray(rng.normal(size=(tokens, width)), dtype)
  head = jnp.asarray(0.3 * rng.normal(size=(vocab, width)), dtype)
  targets = rng.integers(0, vocab, tokens)
  size = -(-vocab // 4)
  special = [0, size - 1, size, 2 * size - 1, 2 * size, 3 * size, vocab - 1]
  special += [vocab, vocab + 1, 4 * size, -1, -100, -size]
  targets[: len(special)] = special
  g = rng.normal(size=(3, tokens)).astype(np.float32)
  return hidden, head, jnp.asarray(targets, jnp.int32), g


def padded(head, shards, fill):
  rows = -len(head) % shards
  return jnp.pad(head, ((0, rows), (0, 0)), constant_values=fill)


def split(mesh, check_vma=True, layout="vd", masked=False, **options):
  """token_logprob on a head that the mesh splits, as a function of arrays."""

  def local(hidden, head, targets, *mask):
    return package.token_logprob_sharded(
      hidden,
      head,
      targets,
      axis_name="tensor",
      mask=mask[0] if mask else None,
      head_layout=layout,
      **options,
    )

  rows = P("data")
  head = P("tensor") if layout == "vd" else P(None, "tensor")
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(rows, head, rows, rows) if masked else (rows, head, rows),
    out_specs=rows,
    check_vma=check_vma,
  )


def values_and_grads(function, hidden, head, targets, g, *mask):
  """Results, and gradients of hidden and head given cotangents [3, N]."""

  def loss(hidden, head):
    out = function(hidden, head, targets, *mask)
    used = [(a, b) for a, b in zip(out, g, strict=True) if a is not None]
    return sum((a * b).sum() for a, b in used), out

  # Compiles fast rather than well.
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(
    jax.grad(loss, (0, 1), has_aux=True), compiler_options=options
  )(hidden, head)[::-1]


@functools.cache
def truth(dtype="float32", vocab=1000, **maths):
  """The reference in float64."""
  hidden, head, targets, g = problem(vocab=vocab, dtype=dtype)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, head)]
    function = functools.partial(
      package.token_logprob, impl="reference", **maths
    )
    return jax.device_get(values_and_grads(function, *exact, targets, g))


def assert_close(actual, expected, tolerance):
  """Error relative to the largest entry: sums over V round on that scale."""
  (out, grads), (true_out, true_grads) = actual, expected
  pairs = [(a, b, tolerance[0]) for a, b in zip(out, true_out, strict=True)]
  pairs += [
    (a, b, tolerance[1]) for a, b in zip(grads, true_grads, strict=True)
  ]
  for a, b, bound in pairs:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    error = np.abs(a - b).max()
    assert error <= bound * np.abs(b).max(), (error, np.abs(b).max())


class ShardedTest(chex.TestCase):
  @parameterized.parameters(
    (1, "float32", True),
    (1, "bfloat16", False),
    (2, "bfloat16", True),
    (2, "float32", False),
    (4, "float32", True),
    (4, "bfloat16", True),
    (4, "float32", False),
  )
  def test_equals_the_reference(self, shards, dtype, check_vma):
    hidden, head, targets, g = problem(dtype=dtype)
    function = split(make_mesh(shards), check_vma, **MATHS)
    actual = values_and_grads(function, hidden, head, targets, g)
    assert_close(actual, truth(dtype, **MATHS), TOLERANCE[dtype])
    self.assertEqual(actual[1][1].dtype, head.dtype)

  @parameterized.parameters(
    (2, {"chunk": 96}, "dv"), (4, {}, "dv"), (4, {"chunk": 96}, "vd")
  )
  def test_equals_the_unsplit_op(self, shards, options, layout):
    hidden, head, targets, g = problem()
    head = head if layout == "vd" else head.T
    whole = functools.partial(
      package.token_logprob, head_layout=layout, **options
    )
    function = split(make_mesh(shards), layout=layout, **options)
    assert_close(
      values_and_grads(function, hidden, head, targets, g),
      values_and_grads(whole, hidden, head, targets, g),
      TOLERANCE["float32"],
    )

  @parameterized.parameters(
    (1003, 2, True),
    (1003, 4, False),
    (13, 4, True),
    (9, 2, False),
    (9, 4, True),
  )
  def test_rows_of_padding_are_not_there(self, vocab, shards, check_vma):
    # 9 of 12 rows on 4 shards: the last shard is all padding.
    hidden, head, targets, g = problem(vocab=vocab)
    full = padded(head, shards, np.nan)
    function = split(make_mesh(shards), check_vma, vocab=vocab)
    out, (d_hidden, d_head) = values_and_grads(
      function, hidden, full, targets, g
    )
    np.testing.assert_array_equal(d_head[vocab:], np.zeros_like(d_head[vocab:]))
    actual = out, (d_hidden, d_head[:vocab])
    assert_close(actual, truth(vocab=vocab), TOLERANCE["float32"])

  def test_the_kernel_on_each_slice_gives_the_same(self):
    # JAX interprets kernels inside of shard_map without check_vma only.
    hidden, head, targets, g = problem(width=128, vocab=299)
    head = padded(head, 2, np.nan)
    actual, expected = (
      values_and_grads(
        split(make_mesh(2), False, vocab=299, impl=impl),
        *(hidden, head, targets, g),
      )
      for impl in ("interpret", "xla")
    )
    assert_close(actual, expected, TOLERANCE["float32"])

  def test_padding_may_be_more_than_a_shard(self):
    hidden, head, targets, g = problem()
    full = jnp.pad(head, ((0, 1400), (0, 0)), constant_values=np.inf)
    for layout, held in (("vd", full), ("dv", full.T)):
      function = split(make_mesh(4), layout=layout, vocab=1000)
      out, (d_hidden, d_head) = values_and_grads(
        function, hidden, held, targets, g
      )
      d_head = d_head if layout == "vd" else d_head.T
      actual = out, (d_hidden, d_head[:1000])
      assert_close(actual, truth(), TOLERANCE["float32"])

  @parameterized.parameters(
    (2, 2, True, 1000), (2, 2, False, 1003), (1, 4, True, 1003)
  )
  def test_rows_may_be_split_too(self, tensor, data, check_vma, vocab):
    hidden, head, targets, g = problem(vocab=vocab)
    function = split(make_mesh(tensor, data), check_vma, vocab=vocab)
    out, (d_hidden, d_head) = values_and_grads(
      function, hidden, padded(head, tensor, 0.0), targets, g
    )
    actual = out, (d_hidden, d_head[:vocab])
    assert_close(actual, truth(vocab=vocab), TOLERANCE["float32"])

  @parameterized.parameters(True, False)
  def test_gradients_inside_of_shard_map_need_check_vma(self, check_vma):
    hidden, head, targets, g = problem()

    def grads(hidden, head, targets, g):
      def loss(hidden, head):
        out = package.token_logprob_sharded(
          hidden, head, targets, axis_name="tensor"
        )
        return sum((a * b).sum() for a, b in zip(out, g, strict=True))

      return jax.grad(loss, (0, 1))(hidden, head)

    inside = jax.shard_map(
      grads,
      mesh=make_mesh(2),
      in_specs=(P(), P("tensor"), P(), P()),
      out_specs=(P(), P("tensor")),
      check_vma=check_vma,
    )
    out, true_grads = truth()
    actual = jax.jit(inside)(hidden, head, targets, g)
    if check_vma:
      assert_close((out, actual), (out, true_grads), TOLERANCE["float32"])
    else:  # as the docstring says
      assert np.abs(actual[0] - true_grads[0]).max() > 0.1

  @parameterized.parameters((True, 1000), (True, 1003), (False, 1003))
  def test_masked_rows_are_zero_whatever_they_hold(self, check_vma, vocab):
    hidden, head, targets, g = problem(vocab=vocab)
    mask = jnp.arange(24) % 3 > 0
    dirty = jnp.where(mask[:, None], hidden, jnp.nan)
    function = split(make_mesh(2, 2), check_vma, masked=True, vocab=vocab)
    actual = values_and_grads(
      function, dirty, padded(head, 2, np.nan), targets, g, mask
    )
    for x in (*actual[0], actual[1][0]):
      self.assertTrue((np.asarray(x)[::3] == 0).all())
    whole = lambda h, w, y, m: package.token_logprob(h, w, y, mask=m)
    expected = values_and_grads(whole, hidden, head, targets, g, mask)
    out, (d_hidden, d_head) = actual
    actual = out, (d_hidden, d_head[:vocab])
    assert_close(actual, expected, TOLERANCE["float32"])

  @parameterized.parameters(1000, 1003)
  def test_without_entropy(self, vocab):
    hidden, head, targets, g = problem(vocab=vocab)
    full = padded(head, 4, 0.0)
    function = split(make_mesh(4), vocab=vocab, with_entropy=False)
    out, _ = values_and_grads(function, hidden, full, targets, g)
    expected = truth(vocab=vocab)[0]
    self.assertIsNone(out.entropy)
    for a, b in ((out[0], expected[0]), (out[2], expected[2])):
      np.testing.assert_allclose(a, b, rtol=5e-6, atol=5e-6)

  def test_large_logits_round_as_they_do_unsplit(self):
    hidden, head, targets, g = problem()
    hidden = 300 * hidden
    with jax.enable_x64(True):
      exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, head)]
      function = functools.partial(package.token_logprob, impl="reference")
      expected, _ = values_and_grads(function, *exact, targets, g)
    split_error, error = (
      np.abs(np.stack(jax.jit(f)(hidden, head, targets)) - np.stack(expected))
      for f in (split(make_mesh(4)), package.token_logprob)
    )
    # Entropy not centred on the maximum would lose another factor.
    self.assertTrue((split_error.max(axis=1) < 3 * error.max(axis=1)).all())


def count(jaxpr, name):
  """Arrays that all primitives of a name take, jaxprs inside included."""
  found = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name.startswith(name):
      found += len(equation.invars)
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      value = getattr(value, "jaxpr", value)
      found += count(value, name) if hasattr(value, "eqns") else 0
  return found


class CostTest(chex.TestCase):
  @parameterized.product(with_entropy=(True, False), vocab=(1000, 1003))
  def test_communicates_one_pmax_and_three_psums(self, with_entropy, vocab):
    hidden, head, targets, _ = problem(vocab=vocab)
    function = split(make_mesh(4), vocab=vocab, with_entropy=with_entropy)
    jaxpr = jax.make_jaxpr(function)(hidden, padded(head, 4, 0.0), targets)
    self.assertEqual(count(jaxpr.jaxpr, "pmax"), 1)
    self.assertEqual(count(jaxpr.jaxpr, "psum"), 3 if with_entropy else 2)

  def test_the_program_gathers_neither_head_nor_logits(self):
    hidden, head, targets, g = problem()
    function = split(make_mesh(4), chunk=50)

    def loss(hidden, head):
      out = function(hidden, head, targets)
      return sum((a * b).sum() for a, b in zip(out, g, strict=True))

    place = jax.sharding.NamedSharding(make_mesh(4), P("tensor"))
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(
      hidden, jax.device_put(head, place)
    )
    text = lowered.compile().as_text()
    self.assertIn("all-reduce", text)
    self.assertNotIn("all-gather", text)
    for shape in ("[24,1000]", "[24,250]", "[1000,16]"):
      self.assertNotIn(shape, text)


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
class AbsentTpuTest(chex.TestCase):
  """The kernel inside of shard_map, for four chips that are not here."""

  tokens, width, vocab = 2048, 256, 65536

  def compiled(self, impl, check_vma, grad=False):
    mesh = jax.sharding.Mesh(np.array(aot.devices("v5e:2x2")), ("tensor",))

    def local(hidden, head, targets):
      return package.token_logprob_sharded(
        hidden, head, targets, axis_name="tensor", impl=impl
      )

    function = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(P(), P("tensor"), P()),
      out_specs=P(),
      check_vma=check_vma,
    )

    def loss(hidden, head, targets):
      out = function(hidden, head, targets)
      return (out.logprob + out.entropy).sum()

    def shape(size, dtype, spec):
      place = jax.sharding.NamedSharding(mesh, spec)
      return jax.ShapeDtypeStruct(size, dtype, sharding=place)

    with jax.set_mesh(mesh):
      lowered = jax.jit(jax.grad(loss, (0, 1)) if grad else function).lower(
        shape((self.tokens, self.width), jnp.bfloat16, P()),
        shape((self.vocab, self.width), jnp.bfloat16, P("tensor")),
        shape((self.tokens,), jnp.int32, P()),
      )
    kernels = lowered.as_text().count("@tpu_custom_call(")
    return kernels, lowered.compile().memory_analysis().temp_size_in_bytes

  @parameterized.parameters(
    ("pallas", True, True), ("auto", True, False), ("auto", False, False)
  )
  def test_compiles_with_the_kernel_on_each_slice(self, impl, check_vma, grad):
    kernels, temporaries = self.compiled(impl, check_vma, grad)
    self.assertEqual(kernels, 1)
    local_logits = 4 * self.tokens * self.vocab // 4
    self.assertLess(temporaries, local_logits / (4 if grad else 100))


class RefusalTest(chex.TestCase):
  @parameterized.parameters(0, 1001, -1)
  def test_a_vocabulary_that_the_shards_do_not_hold(self, vocab):
    hidden, head, targets, _ = problem()
    message = rf"vocab must be in \[1, 1000\].*got {vocab}"
    with self.assertRaisesRegex(ValueError, message):
      split(make_mesh(4), vocab=vocab)(hidden, head, targets)

  def test_what_the_op_refuses(self):
    hidden, head, targets, _ = problem()
    with self.assertRaisesRegex(ValueError, "softcap must be positive"):
      split(make_mesh(4), softcap=-1.0)(hidden, head, targets)
    with self.assertRaisesRegex(ValueError, "head_layout is 'vd' or 'dv'"):
      split(make_mesh(1), layout="xy")(hidden, head.T, targets)
