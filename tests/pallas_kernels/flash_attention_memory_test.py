"""What attention over long rows holds: linear in the length, everywhere."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, flash_attention

H, K, D = 4, 2, 128


def branches(length):
  """A prompt of a quarter of the row, three completions as long."""
  return flash_attention.Pattern(
    prefix=length // 4, branch=length // 4, window=1000
  )


def shapes(length, dtype=jnp.bfloat16):
  return tuple(
    jax.ShapeDtypeStruct((1, length, heads, D), dtype) for heads in (H, K, K)
  ), jax.ShapeDtypeStruct((1, length), bool)


def gradients(pattern, impl):
  def run(operands, mask):
    attend = functools.partial(
      flash_attention.flash_attention, pattern=pattern, mask=mask, impl=impl
    )
    out, vjp = jax.vjp(attend, *operands)
    return out, vjp(out)

  return run


@pytest.mark.skipif(not aot.available(), reason="needs libtpu")
def test_a_tpu_runs_splash_attention_and_holds_no_scores():
  function = gradients(branches(16384), "auto")
  lowered = aot.lower_for("v5e", function, *shapes(16384))
  for kernel in ("fwd", "dq", "dkv"):
    assert f"splash_mha_{kernel}_segmented" in lowered.as_text()
  scores = 4 * H * 16384**2
  memory = lowered.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.01 * scores


def test_xla_needs_linear_memory():
  def needed(length):
    function = jax.jit(gradients(branches(length), "xla"))
    compiled = function.lower(*shapes(length, jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  scores = 4 * H * 8192**2
  assert needed(8192) < min(4.5 * needed(2048), 0.15 * scores)


def test_what_is_kept_for_the_backward_pass_is_linear_in_the_length():
  (q, k, v), _ = shapes(1024, jnp.float32)

  def kept(q, k, v):
    attend = functools.partial(flash_attention.flash_attention, impl="xla")
    return jax.vjp(attend, q, k, v)[1]

  residuals = jax.tree.leaves(jax.eval_shape(kept, q, k, v))
  given = sum(x.size for x in (q, k, v))
  scalars = 8
  kept_size = given + q.size + q.size // D + scalars
  assert sum(x.size for x in residuals) <= kept_size
