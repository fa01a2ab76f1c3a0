"""Plain XLA with its own vjp: nothing of [N, T] is kept for the gradient.

The backward pass reads the inputs again and multiplies each token's slope by
its row's cotangent; autodiff keeps an [N, T] array where all sums are used.

On the TPU all sums are one reduction of many operands, which compiles slowly:
as reductions of their own, if all are used, XLA splits them over two fusions
and writes [N, T] in between. On the CPU one reduction is several times slower.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.policy_loss import token_terms


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def sums(logprob, old, ref, advantages, mask, beta, spec):
  """Returns token_terms.Terms of [N] sums; only loss has a gradient.

  Args:
    logprob: [N, T] in nats; the only argument with a gradient.
    old: [N, T] in nats.
    ref: [N, T] in nats, or None.
    advantages: [N] or [N, T].
    mask: [N, T]; not 0 on the tokens that count.
    beta: scalar.
    spec: token_terms.Spec.
  """
  terms, _ = _terms(logprob, old, ref, advantages, mask, beta, spec)
  return jax.lax.platform_dependent(terms, tpu=_at_once, default=_one_by_one)


def _forward(*args):
  return sums(*args), args[:-1]


def _backward(spec, inputs, cotangents):
  _, slope = _terms(*inputs, spec)
  d_logprob = cotangents.loss[:, None] * slope
  return d_logprob.astype(inputs[0].dtype), None, None, None, None, None


sums.defvjp(_forward, _backward)


def _one_by_one(terms):
  return token_terms.Terms(*(x.sum(axis=1) for x in terms))


def _at_once(terms):
  zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
  add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))  # noqa: E731
  return token_terms.Terms(*jax.lax.reduce(tuple(terms), zeros, add, (1,)))


def _terms(logprob, old, ref, advantages, mask, beta, spec):
  dtype = jnp.promote_types(logprob.dtype, jnp.float32)
  if advantages.ndim == 1:
    advantages = advantages[:, None]
  return token_terms.token_terms(
    logprob.astype(dtype),
    old.astype(dtype),
    None if ref is None else ref.astype(dtype),
    advantages.astype(dtype),
    mask != 0,
    beta,
    spec,
  )
