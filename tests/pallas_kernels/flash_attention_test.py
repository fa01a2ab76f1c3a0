"""Patterns against brute force, branches against rows, cuDNN's rows, refusals.

implementations_test.py compares values and gradients with the reference.
"""

import functools

from absl.testing import parameterized
import chex
import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import blocks, flash_attention
from pallas_kernels.flash_attention import gpu, reference, xla

Pattern = flash_attention.Pattern
S, C, G, H, K, D = 12, 9, 3, 4, 2, 8
L = S + G * C
PATTERNS = (
  Pattern(),
  Pattern(window=7),
  Pattern(prefix=S, branch=C),
  Pattern(prefix=S, branch=C, window=11),
  Pattern(prefix=0, branch=C),
)


def operands(length=L, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(
    jax.random.normal(key, (2, length, heads, D), dtype)
    for key, heads in zip(keys, (H, K, K), strict=True)
  )


def attention(q, k, v, **knobs):
  return jax.jit(
    functools.partial(flash_attention.flash_attention, block=16, **knobs)
  )(q, k, v)


def seen(pattern, i, j):
  """The class docstring of Pattern, token by token."""

  def branch(t):
    behind = t - pattern.prefix
    return -1 if not pattern.branch or behind < 0 else behind // pattern.branch

  def place(t):
    return t - max(branch(t), 0) * pattern.branch

  own = branch(j) in (-1, branch(i)) and j <= i
  near = pattern.window is None or place(i) - place(j) < pattern.window
  return own and near


class PatternTest(chex.TestCase):
  @parameterized.parameters(*PATTERNS)
  def test_a_token_sees_what_the_docstring_says(self, pattern):
    place, shift = pattern.places(L), pattern.shifts(L)
    found = pattern.allows(place[:, None], shift[:, None], np.arange(L)[None])
    expected = [[seen(pattern, i, j) for j in range(L)] for i in range(L)]
    np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(*PATTERNS)
  def test_pairs_are_the_blocks_with_an_allowed_score(self, pattern):
    length, block = 48, 4
    place, shift = pattern.places(length), pattern.shifts(length)
    allowed = pattern.allows(
      place[:, None], shift[:, None], np.arange(length)[None]
    )
    blocked = allowed.reshape(12, block, 12, block).any(axis=(1, 3))
    pairs = np.stack(pattern.pairs(length, block))
    np.testing.assert_array_equal(pairs, np.stack(np.nonzero(blocked)))

  def test_blocks_between_two_branches_are_skipped(self):
    length, block = 512 + 8 * 2048, 512
    branches = Pattern(prefix=512, branch=2048).pairs(length, block)[0].size
    # Each branch: 4 blocks that see the prefix, 10 of its own.
    self.assertEqual(branches, 1 + 8 * (4 + 10))
    self.assertEqual(Pattern().pairs(length, block)[0].size, 33 * 34 // 2)

  @parameterized.parameters(
    ({"prefix": -1}, "at least 0, got -1"), ({"window": 0}, "at least 1")
  )
  def test_numbers_that_cannot_be_are_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      Pattern(**knobs)


class FlashAttentionTest(chex.TestCase):
  @parameterized.parameters(None, 11)
  def test_a_branch_attends_as_a_row_of_prefix_and_branch(self, window):
    q, k, v = operands()
    packed = attention(
      *(q, k, v), pattern=Pattern(prefix=S, branch=C, window=window)
    )
    for g in range(G):
      own = np.r_[0:S, S + g * C : S + (g + 1) * C]
      row = attention(
        *(x[:, own] for x in (q, k, v)), pattern=Pattern(window=window)
      )
      np.testing.assert_allclose(packed[:, own], row, atol=1e-6)

  def test_segments_attend_as_rows_of_their_own(self):
    q, k, v = operands()
    cuts = [0, 5, 21, L]
    ids = np.repeat([4, 1, 2], np.diff(cuts)).astype(np.int32)
    packed = attention(
      *(q, k, v), segment_ids=jnp.broadcast_to(ids, (2, L)), softcap=2.0
    )
    for a, b in zip(cuts, cuts[1:], strict=False):
      row = attention(*(x[:, a:b] for x in (q, k, v)), softcap=2.0)
      np.testing.assert_allclose(packed[:, a:b], row, atol=1e-6)

  def test_garbage_in_padding_changes_no_bit_of_what_is_real(self):
    mask = jnp.arange(L)[None] >= jnp.array([[0], [5]])
    real = mask[:, :, None, None]

    def run(q, k, v):
      out = attention(q, k, v, mask=mask)
      return jnp.where(real, out, 0).sum(), out

    grads = jax.value_and_grad(run, (0, 1, 2), has_aux=True)
    clean = operands()
    dirty = [jnp.where(real, x, jnp.nan) for x in clean]
    (_, a), da = grads(*clean)
    (_, b), db = grads(*dirty)
    chex.assert_tree_all_finite((b, db))
    keep = functools.partial(jnp.where, real)
    chex.assert_trees_all_equal(keep(a, 0), keep(b, 0))
    for x, y in zip(da, db, strict=True):
      chex.assert_trees_all_equal(x, y)
      self.assertEqual(float(jnp.abs(jnp.where(real, 0, y)).max()), 0.0)

  @parameterized.parameters(
    ({"softcap": 0.0}, ValueError, "softcap must be positive"),
    ({"mask": jnp.ones((2, 3), bool)}, ValueError, "mask must be"),
    ({"mask": jnp.ones((2, L))}, TypeError, "mask must be bool"),
    ({"segment_ids": jnp.ones((2, L))}, TypeError, "must be integers"),
    ({"pattern": Pattern(prefix=99, branch=1)}, ValueError, "within the row"),
    ({"block": 0}, ValueError, "block must be"),
    (
      {
        "mask": jnp.ones((2, L), bool),
        "segment_ids": jnp.ones((2, L), jnp.int32),
      },
      ValueError,
      "got both",
    ),
  )
  def test_bad_arguments_are_refused(self, knobs, error, message):
    with self.assertRaisesRegex(error, message):
      flash_attention.flash_attention(*operands(), **knobs)

  def test_operands_that_do_not_fit_are_refused(self):
    q, k, v = operands()
    for bad in ((q[:, :, :3], k, v), (q, k, v[:, :3]), (q[0], k[0], v[0])):
      with self.assertRaisesRegex(ValueError, "K dividing H"):
        flash_attention.flash_attention(*bad)
    with self.assertRaisesRegex(ValueError, "one dtype"):
      flash_attention.flash_attention(q, k, v.astype(jnp.bfloat16))


class GpuTest(chex.TestCase):
  """No GPU here: cuDNN's rows with XLA's arithmetic, and that it lowers."""

  @parameterized.parameters(PATTERNS[1], PATTERNS[2], PATTERNS[3])
  def test_its_rows_are_the_reference(self, pattern):
    index = np.arange(L)[None]
    mask = index >= np.array([[0], [5]])
    if pattern.branch:
      mask &= (index < S) | ((index - S) % C < C - 2)
    else:
      mask &= index < np.array([[L - 3], [L]])
    spec = xla.Spec(0.3, None, pattern)
    segments = jnp.asarray(mask, jnp.int32)

    def run(attend):
      def loss(*args):
        out = jnp.where(
          mask[:, :, None, None], attend(*args, segments, spec), 0
        )
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

      return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*operands())

    chex.assert_trees_all_close(
      run(functools.partial(gpu.attend, implementation="xla")),
      run(reference.attend),
      atol=1e-5,
    )

  @parameterized.parameters(
    (jnp.float32, {}, "bfloat16 and float16"),
    (jnp.bfloat16, {"softcap": 2.0}, "no cap"),
    (jnp.bfloat16, {}, "cuDNN is not detected"),
  )
  def test_what_cudnn_does_not_take_is_refused(self, dtype, knobs, message):
    spec = xla.Spec(0.3, knobs.get("softcap"), Pattern())
    with self.assertRaisesRegex(blocks.Unsupported, message):
      gpu.attend(*operands(dtype=dtype), None, spec)


@pytest.mark.parametrize("pattern", (PATTERNS[0], PATTERNS[3]))
def test_it_lowers_to_cudnn_where_that_is_installed(pattern, monkeypatch):
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  mask = jnp.arange(L)[None] >= jnp.array([[0], [5]])

  def loss(q, k, v):
    out = flash_attention.flash_attention(q, k, v, pattern=pattern, mask=mask)
    return out.astype(jnp.float32).sum()

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("one",))
  with jax.set_mesh(mesh):
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(
      *operands(dtype=jnp.bfloat16)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
