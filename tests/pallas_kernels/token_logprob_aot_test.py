"""Real sizes compiled for absent TPUs: memory, VMEM and what is in there.

N = 8192, V = 151936: float32 logits would take 4.6 GiB.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, token_logprob
from pallas_kernels.token_logprob import tpu_backward, tpu_forward, xla

pytestmark = pytest.mark.skipif(
  not aot.available(), reason="libtpu is not installed"
)

TOKENS, VOCAB = 8192, 151936
LOGITS = 4 * TOKENS * VOCAB
CHIPS = ("v5e", "v5p", "v6e")
WIDTHS = (2048, 4096)


def shapes(width):
  """hidden, head, targets."""
  return (
    jax.ShapeDtypeStruct((TOKENS, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((VOCAB, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
  )


def floats(count):
  return [jax.ShapeDtypeStruct((TOKENS,), jnp.float32)] * count


def forward(hidden, head, targets):
  return tpu_forward.forward(
    hidden, head, targets, jnp.float32(1), None, spec=xla.Spec()
  )


def gradient(wanted):
  def function(hidden, head, targets, *rows):
    return tpu_backward.backward(
      *(hidden, head, targets, jnp.float32(1), None, *rows),
      spec=xla.Spec(),
      wanted=wanted,
    )

  return function


def loss_and_gradients(**options):
  def loss(hidden, head, targets, advantages):
    out = token_logprob.token_logprob(hidden, head, targets, **options)
    return (out.logprob * advantages).sum() + 1e-3 * out.entropy.sum()

  return jax.value_and_grad(loss, (0, 1))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kernel", ["forward", "dx", "dw"])
def test_a_kernel_needs_under_a_hundredth_of_the_logits(kernel, chip, width):
  if kernel == "forward":
    compiled = aot.compile_for(chip, forward, *shapes(width))
  else:
    function = gradient((kernel == "dx", kernel == "dw"))
    compiled = aot.compile_for(chip, function, *shapes(width), *floats(5))
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 0.01 * LOGITS


def compiled_loss(chip, width, **options):
  """The loss's program, and how many kernels are in it."""
  arguments = *shapes(width), *floats(1)
  compiled = aot.compile_for(chip, loss_and_gradients(**options), *arguments)
  if chip == "v6e":  # as_text may raise on its asynchronous operations
    return compiled, None
  return compiled, compiled.as_text().count('target="tpu_custom_call"')


@pytest.mark.parametrize(
  ("chip", "width"), [*((chip, 2048) for chip in CHIPS), ("v5p", 4096)]
)
def test_the_default_needs_a_float32_dhidden_and_a_tile(chip, width):
  # Both are of XLA's backward; a chip with room in VMEM keeps dhidden there.
  compiled, kernels = compiled_loss(chip, width)
  assert kernels in (1, None)
  chunk = xla.chunk_size(TOKENS, VOCAB)
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 4 * TOKENS * (width + chunk)


@pytest.mark.parametrize("chip", CHIPS)
def test_gradients_by_kernels_need_under_a_hundredth(chip):
  compiled, kernels = compiled_loss(chip, 2048, backward="pallas")
  assert kernels in (3, None)
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 0.01 * LOGITS
