"""The ops of pallas_kernels with the naive form of each, for bench_kernels.

The first form of a case is the naive one: what a reader of the equation would
write in jax.numpy. CASES maps a name to a function of the sizes.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import token_logprob


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


def _case(op, functions, shapes, *, flops, nbytes, kernels=None) -> Case:
  """Args: functions and kernels (those for the TPU only) are {name: fn}."""

  def build(function):
    arrays = _arrays(shapes)
    program = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(program(*arrays)) and None

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


def _shape(*dims, dtype="float32"):
  return jax.ShapeDtypeStruct(dims, dtype)


def _head_shapes(s):
  return (
    _shape(s.tokens, s.width, dtype=s.dtype),
    _shape(s.vocab, s.width, dtype=s.dtype),
    _shape(s.tokens, dtype="int32"),
    _shape(s.tokens),
  )


def _head_bytes(s):
  return jnp.dtype(s.dtype).itemsize * s.width * (s.tokens + s.vocab)


def naive_logprob(hidden, head, targets):
  """Log-probability and entropy by way of the logits."""
  logits = jnp.dot(hidden, head.T, preferred_element_type=jnp.float32)
  logprobs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]
  return chosen, -(jnp.exp(logprobs) * logprobs).sum(axis=1)


def _op(hidden, head, targets, **options):
  out = token_logprob.token_logprob(hidden, head, targets, **options)
  return out.logprob, out.entropy


def _both_grads(function):
  """Gradients of sum(g logprob) + 0.001 sum(entropy), both inputs."""

  def run(hidden, head, targets, g):
    def loss(hidden, head):
      logprob, entropy = function(hidden, head, targets)
      return (g * logprob).sum() + 1e-3 * entropy.sum()

    return jax.value_and_grad(loss, (0, 1))(hidden, head)

  return run


def _forward(function):
  return lambda hidden, head, targets, g: function(hidden, head, targets)


def _token_logprob(s: Sizes) -> Case:
  """What the old policy and the reference are asked: no gradient."""
  kernel = functools.partial(_op, impl="pallas")
  return _case(
    "token_logprob",
    {"naive": _forward(naive_logprob), "xla": _forward(_xla)},
    _head_shapes(s),
    flops=2.0 * s.tokens * s.width * s.vocab,
    nbytes=_head_bytes(s),
    kernels={"pallas": _forward(kernel)},
  )


def _token_logprob_grad(s: Sizes) -> Case:
  """A train step's: forward and both gradients, three products."""
  kernel = functools.partial(_op, impl="pallas")
  return _case(
    "token_logprob_grad",
    {"naive": _both_grads(naive_logprob), "xla": _both_grads(_xla)},
    _head_shapes(s),
    flops=6.0 * s.tokens * s.width * s.vocab,
    nbytes=3 * _head_bytes(s),
    kernels={
      "pallas + xla": _both_grads(kernel),
      "pallas": _both_grads(functools.partial(kernel, backward="pallas")),
    },
  )


def _xla(*args):
  return _op(*args, impl="xla")


CASES: dict[str, Callable[[Sizes], Case]] = {
  "token_logprob": _token_logprob,
  "token_logprob_grad": _token_logprob_grad,
}


def with_torch(case: Case, s: Sizes) -> Case:
  """The case with PyTorch's forms beside ours, where there are any."""
  if not case.op.startswith("token_logprob"):
    return case
  import kernel_peers

  forms = kernel_peers.logprob_forms(s, grad=case.op.endswith("_grad"))
  return case._replace(
    forms=case.forms | forms, measured=case.measured + tuple(forms)
  )
