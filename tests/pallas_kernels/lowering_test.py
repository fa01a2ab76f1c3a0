"""Every default path lowers for accelerators that this machine lacks.

Lowering proves shapes, types and the choice of implementation, not speed: no
machine code is made.
"""

import functools
import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import op_cases
import pytest

from pallas_kernels import token_logprob

OPS = [
  importlib.import_module(f"{op_cases.__name__}.{module.name}").OP
  for module in pkgutil.iter_modules(op_cases.__path__)
]
CASES = [
  pytest.param(op, dtype, case, id=f"{op.name}-{dtype}-{case}")
  for op in OPS
  for dtype in op.dtypes
  for case in op.cases
]
KERNELS = re.compile("tpu_custom_call|mosaic|triton", re.IGNORECASE)


def lowered(platform, function, *inputs):
  """The program, traced as for one device: there "auto" may take kernels."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("one",))
  with jax.set_mesh(mesh):
    traced = jax.jit(function).trace(*inputs)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def values_and_grads(problem):
  """The function of a problem by default, with gradients where it has some."""

  def values(*inputs):
    return problem.function("auto", *inputs)

  def loss(*inputs):
    out = values(*inputs)
    return sum(jnp.where(jnp.isfinite(x), x, 0).sum() for x in out), out

  if not problem.inputs:
    return values
  return jax.grad(loss, tuple(range(len(problem.inputs))), has_aux=True)


@pytest.mark.parametrize(("op", "dtype", "case"), CASES)
def test_the_default_lowers(op, dtype, case):
  problem = op.problem(dtype, **op.cases[case])
  function = values_and_grads(problem)
  assert not KERNELS.search(lowered("cuda", function, *problem.inputs))
  assert "func.func public @main" in lowered("tpu", function, *problem.inputs)


def large(dtype, entropy):
  """Value and gradient of the op at a size where [N, V] would count."""

  def loss(hidden, head, targets):
    out = token_logprob.token_logprob(
      hidden, head, targets, with_entropy=entropy
    )
    return out.logprob.sum() + (out.entropy.sum() if entropy else 0)

  return jax.value_and_grad(loss, (0, 1)), (
    jax.ShapeDtypeStruct((1024, 128), dtype),
    jax.ShapeDtypeStruct((50257, 128), dtype),
    jax.ShapeDtypeStruct((1024,), jnp.int32),
  )


@functools.cache
def large_text(platform, dtype, entropy=True):
  function, shapes = large(dtype, entropy)
  return lowered(platform, function, *shapes)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_program_has_an_array_of_tokens_by_vocabulary(platform, dtype):
  text = large_text(platform, dtype)
  assert "1024x128x" in text
  for shape in ("1024x50257x", "50257x1024x"):
    assert shape not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_for_tpus(dtype):
  for platform in ("cpu", "cuda", "rocm"):
    assert not KERNELS.search(large_text(platform, dtype))
  assert "tpu_custom_call" in large_text("tpu", dtype)


def test_several_devices_take_no_kernel():
  # Mosaic kernels cannot be partitioned automatically.
  function, shapes = large("bfloat16", True)
  traced = jax.jit(function).trace(*shapes)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert not KERNELS.search(text)


def test_the_environment_takes_kernels_away(monkeypatch):
  monkeypatch.setenv("JAXRL_KERNELS", "xla")
  function, shapes = large("bfloat16", True)
  assert not KERNELS.search(lowered("tpu", function, *shapes))
