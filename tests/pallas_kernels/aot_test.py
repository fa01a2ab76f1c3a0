"""Compiling for TPUs that are not here: messages, donation, memory."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot

_MIB = 2**20
_needs_libtpu = pytest.mark.skipif(
  not aot.available(), reason="libtpu is not installed"
)
ARRAY = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert not aot.available()
  for call in (
    lambda: aot.devices("v5e:2x2"),
    lambda: aot.compile_for("v5e", jnp.sin, ARRAY),
  ):
    with pytest.raises(ModuleNotFoundError, match="install libtpu") as caught:
      call()
    assert "\n" not in str(caught.value)


def test_an_unknown_chip_is_refused_with_those_that_are_known():
  for call in (aot.compile_for, aot.lower_for):
    with pytest.raises(ValueError, match="chip is one of .*'v5e'.* got 'v5x'"):
      call("v5x", jnp.sin, ARRAY)


@_needs_libtpu
def test_the_environment_is_left_as_it_was(monkeypatch):
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
  before = dict(os.environ)
  assert len(aot.devices("v5e:2x2")) == 4
  assert dict(os.environ) == before


@_needs_libtpu
def test_the_memory_is_that_of_the_arrays():
  def function(tree, y):
    return tree["x"] + y

  memory = aot.compile_for(
    "v5e", function, {"x": ARRAY}, jnp.ones((1024, 1024))
  ).memory_analysis()
  assert memory.argument_size_in_bytes == 8 * _MIB
  assert memory.output_size_in_bytes == 4 * _MIB
  assert memory.alias_size_in_bytes == 0
  assert memory.temp_size_in_bytes < _MIB


@_needs_libtpu
def test_a_temporary_that_must_exist_is_counted():
  def function(x):
    square = jax.lax.optimization_barrier(jnp.outer(x, x))
    return square.sum(axis=0) @ square

  row = jax.ShapeDtypeStruct((8192,), jnp.float32)  # its square fits no VMEM
  memory = aot.compile_for("v5e", function, row).memory_analysis()
  assert memory.argument_size_in_bytes == memory.output_size_in_bytes == 2**15
  assert 256 * _MIB <= memory.temp_size_in_bytes < 260 * _MIB


@_needs_libtpu
@pytest.mark.parametrize("donated", [(), (0,), (0, 1)])
def test_donation_is_kept(donated):
  def function(x, y):
    return x + 1.0, y * 2.0

  memory = aot.compile_for(
    "v6e", function, ARRAY, ARRAY, donate_argnums=donated
  ).memory_analysis()
  assert memory.alias_size_in_bytes == len(donated) * 4 * _MIB


@_needs_libtpu
def test_what_is_lowered_is_what_would_be_compiled():
  lowered = aot.lower_for("v5e", jnp.sin, ARRAY, donate_argnums=0)
  assert "stablehlo.sine" in lowered.as_text()
  memory = lowered.compile().memory_analysis()
  assert memory.alias_size_in_bytes == 4 * _MIB
