"""The door: checks, padding and the choice of implementation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.token_logprob import (
  reference,
  tiles,
  tpu_backward,
  tpu_forward,
  xla,
)

_OP = "token_logprob"
# Bytes of float32 logits below which XLA takes all of V in one chunk: there
# is nothing to save, and it compiles faster than a kernel.
_SMALL = 64 * 2**20


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
  backward: str = "xla",
  blocks: tiles.Blocks | None = None,
) -> TokenLogprob:
  """Log-probability, entropy and logsumexp, never holding [N, V] logits.

    u = hidden W^T;  c = softcap tanh(u / softcap);  z = inv_temperature c
    logprob = z_y - logsumexp(z);  entropy = -sum_v p_v log p_v

  The soft-cap comes before the temperature: a model's logits are the capped
  ones. Differentiable in `hidden` and `head` through all three results, not
  in the temperature. Products take the dtype of `hidden` (a float32 head with
  bfloat16 hidden states is cast a chunk at a time and its gradient stays
  float32) and accumulate in float32; so does everything after them.

  Memory of "xla": one [N, chunk] tile, and its product with scale and exp,
  instead of [N, V]; the backward pass recomputes it and carries a float32
  [N, D]. The kernels keep their tiles in VMEM and need none.

  "auto" runs the kernel on TPU for the values, unless [N, V] is under 64 MB,
  and XLA's chunks for the gradients: three products instead of the kernels'
  four.

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
    chunk: vocabulary entries at a time of "xla"; None picks by size and
      platform.
    backward: "xla" or "pallas": who makes the gradients where a kernel made
      the values. "pallas" has no temporaries of the size of hidden or of a
      chunk, for a fourth product; where values come from XLA it changes
      nothing.
    blocks: tiles of the kernels; None, or None in it, picks by the chip's
      VMEM.

  Returns:
    TokenLogprob.

  Raises:
    blocks.Unsupported: if impl asks for a kernel and D is not a multiple of
      128, a dtype is neither float32 nor bfloat16, or a tile does not fit.
  """
  _check(hidden, head, targets, head_layout, mask)
  _check_knobs(softcap, chunk, backward)
  if mask is not None:
    mask = mask.astype(bool)
    hidden = jnp.where(mask[:, None], hidden, 0)
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  scale = jax.lax.stop_gradient(jnp.asarray(inv_temperature, dtype))
  impl = dispatch.choose(_OP, impl, kernel=True)
  spec = xla.Spec(
    head_layout, softcap, chunk, with_entropy, impl, backward, blocks
  )
  if impl == "reference":
    out = reference.logprob(hidden, head, targets, scale, spec)
  else:
    out = _logprob(hidden, head, targets, scale, mask, spec)
  if mask is not None:
    out = tuple(o if o is None else jnp.where(mask, o, 0) for o in out)
  return TokenLogprob(*out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _logprob(hidden, head, targets, scale, mask, spec):
  """Values of every implementation; all of them have the same residuals."""
  return dispatch.call(
    _OP,
    spec.impl,
    *(hidden, head, targets, scale, mask),
    xla=functools.partial(xla.forward, spec=spec),
    reference=functools.partial(reference.logprob, spec=spec),
    pallas=functools.partial(tpu_forward.forward, spec=spec),
    on_tpu=_is_large(hidden, head),
  )


def _logprob_fwd(hidden, head, targets, scale, mask, spec):
  wanted = hidden.perturbed, head.perturbed
  args = tuple(
    None if a is None else a.value for a in (hidden, head, targets, scale, mask)
  )
  out = _logprob(*args, spec)
  # `wanted` must be static: it is told by which of the two slots are filled.
  flags = tuple(() if w else None for w in wanted)
  return out, (args, out[1:], flags)


def _logprob_bwd(spec, residuals, cotangents):
  args, (entropy, logsumexp), flags = residuals
  wanted = tuple(flag is not None for flag in flags)
  zero = jax.custom_derivatives.SymbolicZero
  g = tuple(None if isinstance(c, zero) else c for c in cotangents)
  if all(c is None for c in g):
    return None, None, None, None, None
  how = {"spec": spec, "wanted": wanted}
  d_hidden, d_head = dispatch.call(
    _OP,
    spec.impl if spec.backward == "pallas" else "xla",
    *(*args, entropy, logsumexp, *g),
    xla=functools.partial(xla.backward, **how),
    reference=functools.partial(xla.backward, **how),
    pallas=functools.partial(tpu_backward.backward, **how),
    on_tpu=_is_large(*args[:2]),
  )
  return d_hidden, d_head, None, None, None


_logprob.defvjp(_logprob_fwd, _logprob_bwd, symbolic_zeros=True)


def _is_large(hidden, head):
  tokens, width = hidden.shape
  return width > 0 and 4 * tokens * (head.size // width) >= _SMALL


def _check_knobs(softcap, chunk, backward):
  if softcap is not None and softcap <= 0:
    raise ValueError(f"softcap must be positive or None, got {softcap}.")
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be at least 1 or None, got {chunk}.")
  if backward not in ("xla", "pallas"):
    raise ValueError(f"backward is 'xla' or 'pallas', got {backward!r}.")


def _check(hidden, head, targets, head_layout, mask):
  if head_layout not in ("vd", "dv"):
    raise ValueError(f"head_layout is 'vd' or 'dv', got {head_layout!r}.")
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
