"""Every implementation of every op against its reference in float64."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import op_cases
import pytest

import pallas_kernels
from pallas_kernels import blocks

OPS = [
  importlib.import_module(f"{op_cases.__name__}.{module.name}").OP
  for module in pkgutil.iter_modules(op_cases.__path__)
]
CASES = [
  pytest.param(op, impl, dtype, case, id=f"{op.name}-{impl}-{dtype}-{case}")
  for op in OPS
  for impl in op.impls
  for dtype in op.dtypes
  for case in op.cases
]


def run(problem, impl, inputs, cotangents=None):
  """Values and, given cotangents, the gradients of sum(values * cotangents)."""

  def values(*inputs):
    return problem.function(impl, *inputs)

  if not inputs or cotangents is None:
    return jax.jit(values)(*inputs), ()

  def loss(*inputs):
    out = values(*inputs)
    return sum((a * b).sum() for a, b in zip(out, cotangents, strict=True)), out

  every = tuple(range(len(inputs)))
  grads, out = jax.jit(jax.grad(loss, every, has_aux=True))(*inputs)
  return out, grads


def drawn(shapes):
  rng = np.random.default_rng(7)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_close(actual, expected, tolerance, what):
  """Error relative to the largest entry: long sums round on that scale."""
  actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
  assert actual.shape == expected.shape, what
  same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
  error = np.where(same, 0, np.abs(actual - expected)).max(initial=0)
  scale = np.abs(expected).max(initial=0, where=np.isfinite(expected))
  assert error <= tolerance * scale, (what, error, scale)


@pytest.mark.parametrize(("op", "impl", "dtype", "case"), CASES)
def test_implementation_equals_the_reference(op, impl, dtype, case):
  problem = op.problem(dtype, **op.cases[case])
  if (impl, case) in op.skip:
    with pytest.raises(blocks.Unsupported):
      run(problem, impl, problem.inputs)
    return
  shapes = [np.shape(x) for x in run(problem, impl, problem.inputs)[0]]
  cotangents = drawn(shapes)
  out, grads = run(problem, impl, problem.inputs, cotangents)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x, np.float64)) for x in problem.inputs]
    truth, true_grads = run(problem, "reference", exact, cotangents)
  values, gradients = op.tolerance[dtype]
  for i, (a, b) in enumerate(zip(out, truth, strict=True)):
    assert_close(a, b, values, f"value {i}")
  for i, (a, b) in enumerate(zip(grads, true_grads, strict=True)):
    assert a.dtype == problem.inputs[i].dtype
    assert_close(a, b, gradients, f"gradient {i}")


def test_every_op_of_the_package_is_here():

  folders = {
    m.name for m in pkgutil.iter_modules(pallas_kernels.__path__) if m.ispkg
  }
  assert folders == {op.name for op in OPS}
