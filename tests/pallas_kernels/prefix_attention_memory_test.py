"""What attention over parts holds: on absent TPUs, and between two passes."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, prefix_attention
from pallas_kernels.prefix_attention import xla

shared_prefix_attention = prefix_attention.shared_prefix_attention
Part = prefix_attention.Part


def operands():
  """B=2, G=3, P=5, C=6, H=4, K=2, d=8."""
  shapes = (6, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8), (6, 6, 2, 8), (6, 6, 2, 8)
  q, pk, pv, k, v = (jnp.ones(shape) for shape in shapes)
  lengths = jnp.array([5, 3]), jnp.array([6, 0, 1, 3, 6, 2])
  return q, pk, pv, lengths[0], k, v, lengths[1]


def real_sizes():
  """N=64 (G=16), P=2048, C=4096, 32/8 heads, d=128 in bfloat16."""
  rows, prompts, heads, kv, dim, p, c = 64, 4, 32, 8, 128, 2048, 4096

  def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)

  shared, own = shape(prompts, p, kv, dim), shape(rows, c, kv, dim)
  whole = shape(rows, p + c, kv, dim)
  q, length = shape(rows, heads, dim), shape(rows, dtype=jnp.int32)
  parts = (q, shared, shared, shape(prompts, dtype=jnp.int32), own, own, length)
  return parts, (q, whole, whole, length)


def of_groups(*args):
  return shared_prefix_attention(*args, group_size=16)


def of_rows(q, k, v, length):
  allowed = jnp.arange(k.shape[1])[None] < length[:, None]
  part = Part(k, v, allowed[:, None, None], "skd", "skd")
  q = q.reshape(q.shape[0], k.shape[2], -1, q.shape[2])
  return prefix_attention.attend(q, [part], scale=0.1)


class CostTest(chex.TestCase):
  @parameterized.parameters("v5e", "v5p", "v6e")
  @pytest.mark.skipif(not aot.available(), reason="needs libtpu")
  def test_a_tpu_holds_the_prompt_once_and_copies_no_cache(self, chip):
    parts, whole = real_sizes()
    memory = aot.compile_for(chip, of_groups, *parts).memory_analysis()
    naive = aot.compile_for(chip, of_rows, *whole).memory_analysis()
    arguments = memory.argument_size_in_bytes
    self.assertLess(arguments, 0.7 * naive.argument_size_in_bytes)
    scores = 4 * 64 * 32 * (2048 + 4096)
    self.assertLess(memory.temp_size_in_bytes, 1.1 * scores)
    self.assertLess(memory.temp_size_in_bytes, 0.06 * arguments)

  def test_lowers_for_cuda_from_the_cpu(self):
    for function, shapes in zip(
      (of_groups, of_rows), real_sizes(), strict=True
    ):
      traced = jax.jit(function).trace(*shapes)
      text = traced.lower(lowering_platforms=("cuda",)).as_text()
      self.assertIn("dot_general", text)

  def test_lowers_for_cuda_with_gradients(self):
    def loss(*args):
      out, lse = shared_prefix_attention(
        *args, group_size=3, with_logsumexp=True
      )
      return out.sum() + lse.sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2, 4, 5))).trace(*operands())
    traced.lower(lowering_platforms=("cuda",))

  def test_what_is_kept_for_the_backward_pass_is_linear_in_length(self):
    args = operands()

    def run(*args):
      return shared_prefix_attention(*args, group_size=3)

    out, vjp = jax.vjp(run, *args)
    kept = sum(x.size for x in jax.tree.leaves(vjp))
    masks = args[3].size + args[6].size * args[4].shape[1]
    lse = out.size // out.shape[-1]
    given = sum(x.size for x in args)
    self.assertLessEqual(kept, given + out.size + lse + masks)

  def test_the_logsumexp_costs_nothing_where_it_is_not_asked_for(self):
    q, *_, k, v, _ = operands()
    q = q.reshape(q.shape[0], k.shape[2], -1, q.shape[2])
    spec = xla.Spec(1.0, None, (("skd", "skd"),), False)
    out, lse = xla.attend(q, ((k, v),), (jnp.ones((1, 1, 1, 1), bool),), spec)
    self.assertEqual(out.shape, q.shape)
    self.assertIsNone(lse)
