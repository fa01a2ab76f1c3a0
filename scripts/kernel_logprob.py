"""token_logprob for bench_kernels: values, and values with both gradients."""

import functools

import jax
import jax.numpy as jnp
import kernel_case

from pallas_kernels import token_logprob


def _head_shapes(s):
  return (
    kernel_case.shape(s.tokens, s.width, dtype=s.dtype),
    kernel_case.shape(s.vocab, s.width, dtype=s.dtype),
    kernel_case.shape(s.tokens, dtype="int32"),
    kernel_case.shape(s.tokens),
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


def token_logprob_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """What the old policy and the reference are asked: no gradient."""
  kernel = functools.partial(_op, impl="pallas")
  return kernel_case.make(
    "token_logprob",
    {"naive": _forward(naive_logprob), "xla": _forward(_xla)},
    _head_shapes(s),
    flops=2.0 * s.tokens * s.width * s.vocab,
    nbytes=_head_bytes(s),
    kernels={"pallas": _forward(kernel)},
  )


def token_logprob_grad_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """A train step's: forward and both gradients, three products."""
  kernel = functools.partial(_op, impl="pallas")
  return kernel_case.make(
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
