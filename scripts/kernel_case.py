"""What bench_kernels times: an op at one size, and its forms.

The first form of a case is the naive one: what a reader of the equation would
write in jax.numpy.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Sizes(NamedTuple):
  """Sizes of all cases; see bench_kernels --help."""

  dtype: str
  tokens: int
  width: int
  vocab: int
  rows: int
  length: int


class Case(NamedTuple):
  """One op, at one size.

  Attributes:
    op: its name in the table.
    forms: {name: build}, the naive one first; build() compiles and gives a
      function that runs once and waits for the result.
    compiled: {name: function} to compile for an absent chip.
    shapes: jax.ShapeDtypeStruct of the arguments of `compiled`.
    flops: operations of the matrix products.
    nbytes: bytes that must be read and written.
    measured: forms whose memory is measured.
  """

  op: str
  forms: dict[str, Callable[[], Callable[[], None]]]
  compiled: dict[str, Callable]
  shapes: tuple[jax.ShapeDtypeStruct, ...]
  flops: float
  nbytes: float
  measured: tuple[str, ...]


_SMALL = Sizes("float32", 2048, 512, 32768, 256, 1024)
_LARGE = Sizes("bfloat16", 8192, 2048, 151936, 4096, 8192)


def sizes(args: Any, *, tpu: bool) -> Sizes:
  """Sizes of the command line; what it leaves out suits the platform."""
  large = tpu or jax.default_backend() != "cpu"
  chosen = _LARGE if large else _SMALL
  given = {name: getattr(args, name) for name in Sizes._fields}
  return chosen._replace(**{k: v for k, v in given.items() if v})


def make(op, functions, shapes, *, flops, nbytes, kernels=None) -> Case:
  """Args: functions and kernels (those for the TPU only) are {name: fn}."""

  def build(function):
    arrays = _arrays(shapes)
    program = jax.jit(function).lower(*arrays).compile()

    def run():
      jax.block_until_ready(program(*arrays))

    return run

  forms = {name: functools.partial(build, f) for name, f in functions.items()}
  if jax.default_backend() == "tpu":
    forms |= {
      n: functools.partial(build, f) for n, f in (kernels or {}).items()
    }
  compiled = functions | (kernels or {})
  return Case(op, forms, compiled, shapes, flops, nbytes, tuple(forms))


@functools.cache
def _arrays(shapes):
  """Normal floats; integers and booleans as in a batch that is half full."""
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return tuple(_array(k, s) for k, s in zip(keys, shapes, strict=True))


def _array(key, shape):
  if shape.dtype == jnp.bool_:
    return jax.random.bernoulli(key, 0.5, shape.shape)
  if jnp.issubdtype(shape.dtype, jnp.integer):
    return jax.random.randint(key, shape.shape, 0, 1000, shape.dtype)
  return (jax.random.normal(key, shape.shape) / 4).astype(shape.dtype)


def shape(*dims: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
  """Of an argument."""
  return jax.ShapeDtypeStruct(dims, dtype)
