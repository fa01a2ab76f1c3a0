"""The door: checks, padding and the choice of implementation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.token_logprob import reference, xla


class TokenLogprob(NamedTuple):
  """What the model says about N chosen tokens, in nats.

  Attributes:
    logprob: [N] float32, log-probability of the target.
    entropy: [N] float32, entropy of the whole distribution, or None.
    logsumexp: [N] float32, logarithm of the partition function.
  """

  logprob: jax.Array
  entropy: jax.Array | None
  logsumexp: jax.Array


def token_logprob(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  head_layout: str = "vd",
  inv_temperature: float | jax.Array = 1.0,
  softcap: float | None = None,
  mask: jax.Array | None = None,
  with_entropy: bool = True,
  impl: str | None = None,
  chunk: int | None = None,
) -> TokenLogprob:
  """Log-probability, entropy and logsumexp, never holding [N, V] logits.

    u = hidden W^T;  c = softcap tanh(u / softcap);  z = inv_temperature c
    logprob = z_y - logsumexp(z);  entropy = -sum_v p_v log p_v

  The soft-cap comes before the temperature: a model's logits are the capped
  ones. Differentiable in `hidden` and `head` through all three results, not
  in the temperature. Products take the dtype of `hidden` (a float32 head with
  bfloat16 hidden states is cast a chunk at a time and its gradient stays
  float32) and accumulate in float32; so does everything after them.

  Memory: one [N, chunk] tile, and its product with scale and exp, instead of
  [N, V]; the backward pass recomputes it.

  Args:
    hidden: [N, D] final hidden states.
    head: [V, D], or [D, V] when head_layout is "dv".
    targets: [N] integer ids. An id outside [0, V) (padding, another shard's)
      matches no column: its logit counts as 0, so logprob = -logsumexp.
    head_layout: "vd" or "dv".
    inv_temperature: 1 / temperature, positive; a float or a traced scalar.
    softcap: positive cap of the logits, or None.
    mask: [N]; rows where it is false give exactly 0 in every result and in
      every gradient, whatever `hidden` holds there.
    with_entropy: False saves its work and returns None for it.
    impl: see dispatch.py; None follows JAXRL_KERNELS, then the platform.
    chunk: vocabulary entries at a time; None picks by size and platform.

  Returns:
    TokenLogprob.
  """
  _check(hidden, head, targets, head_layout, softcap, mask, chunk)
  if mask is not None:
    mask = mask.astype(bool)
    hidden = jnp.where(mask[:, None], hidden, 0)
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  scale = jax.lax.stop_gradient(jnp.asarray(inv_temperature, dtype))
  spec = xla.Spec(head_layout, softcap, chunk, with_entropy)
  out = dispatch.call(
    "token_logprob",
    impl,
    *(hidden, head, targets, scale),
    xla=lambda *args: xla.logprob(*args, spec),
    reference=lambda *args: reference.logprob(*args, spec),
  )
  if mask is not None:
    out = tuple(o if o is None else jnp.where(mask, o, 0) for o in out)
  return TokenLogprob(*out)


def _check(hidden, head, targets, head_layout, softcap, mask, chunk):
  if head_layout not in ("vd", "dv"):
    raise ValueError(f"head_layout is 'vd' or 'dv', got {head_layout!r}.")
  if softcap is not None and softcap <= 0:
    raise ValueError(f"softcap must be positive or None, got {softcap}.")
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be at least 1 or None, got {chunk}.")
  shapes = hidden.shape, head.shape, targets.shape
  width = head.shape[-1 if head_layout == "vd" else 0] if head.ndim else None
  if (
    (hidden.ndim, head.ndim, targets.ndim) != (2, 2, 1)
    or width != hidden.shape[1]
    or targets.shape[0] != hidden.shape[0]
  ):
    raise ValueError(
      "token_logprob needs hidden [N, D], head [V, D] ('dv': [D, V]) and "
      f"targets [N], got {shapes} with head_layout={head_layout!r}."
    )
  if mask is not None and mask.shape != targets.shape:
    raise ValueError(f"mask must be [N] {targets.shape}, got {mask.shape}.")
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise TypeError(f"targets must be integers, got {targets.dtype}.")
