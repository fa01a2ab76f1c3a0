"""policy_loss: memory of both implementations, tiles, absent TPUs."""

import chex
import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, blocks, policy_loss
from pallas_kernels.policy_loss import tpu

_CLIP = {"clip_low": 0.2, "clip_high": 0.28}


class MemoryTest(chex.TestCase):
  def test_a_tile_is_no_larger_than_the_arrays_and_fits_every_chip(self):
    for chip in blocks.CHIPS.values():
      small = [jax.ShapeDtypeStruct((5, 130), jnp.float32)] * 5
      large = [jax.ShapeDtypeStruct((4096, 8192), jnp.float32)] * 5
      self.assertEqual(tpu._tile(small, chip, True), (32, 256))
      self.assertIn(tpu._tile(large, chip, True), tpu._TILES)

  def test_nothing_of_all_tokens_outlives_the_forward_pass(self):
    old, mask = jnp.zeros((8, 64)), jnp.ones((8, 64), bool)

    def loss(logprob):
      return policy_loss.policy_loss_sums(
        *(logprob, old, None, old[:, 0], mask), **_CLIP, impl="xla"
      ).loss

    kept = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], old)
    wide = [x for x in jax.tree.leaves(kept) if x.shape == (8, 64)]
    self.assertLessEqual(len(wide), 3)  # logprob, old and mask


def step(impl, *, grad):
  """A token mean, its gradient if asked, and every sum as a metric."""

  def loss(logprob, old, ref, advantages, mask):
    sums = policy_loss.policy_loss_sums(
      *(logprob, old, ref, advantages, mask), **_CLIP, beta=0.01, impl=impl
    )
    metrics = jax.tree.map(jnp.sum, sums)
    return metrics.loss / metrics.tokens, metrics

  return jax.value_and_grad(loss, has_aux=True) if grad else loss


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_the_kernel_compiles_and_keeps_one_array(chip):
  array = jax.ShapeDtypeStruct((4096, 8192), jnp.float32)
  row = jax.ShapeDtypeStruct((4096,), jnp.float32)
  mask = jax.ShapeDtypeStruct((4096, 8192), jnp.int8)
  for grad, kept in ((False, 0), (True, 4 * 4096 * 8192)):
    compiled = aot.compile_for(
      *(chip, step("pallas", grad=grad)), *(array, array, array, row, mask)
    )
    memory = compiled.memory_analysis()
    assert kept <= memory.temp_size_in_bytes <= kept + 2**20
    assert "tpu_custom_call" in compiled.as_text()


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
@pytest.mark.parametrize("size", [(1, 1), (5, 129), (129, 5), (300, 1200)])
def test_the_kernel_compiles_at_ragged_sizes(size):
  array = jax.ShapeDtypeStruct(size, jnp.bfloat16)
  mask = jax.ShapeDtypeStruct(size, jnp.bool_)
  aot.compile_for(
    *("v5e", step("pallas", grad=True)), *(array, array, array, array, mask)
  )


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
def test_xla_keeps_nothing():
  array = jax.ShapeDtypeStruct((4096, 8192), jnp.float32)
  row = jax.ShapeDtypeStruct((4096,), jnp.float32)
  mask = jax.ShapeDtypeStruct((4096, 8192), jnp.bool_)
  compiled = aot.compile_for(
    *("v5e", step(None, grad=True)), *(array, array, array, row, mask)
  )
  assert compiled.memory_analysis().temp_size_in_bytes <= 2**20
  assert "tpu_custom_call" not in compiled.as_text()
