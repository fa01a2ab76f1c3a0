"""The door: checks, noise, temperature and the choice of implementation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.sampling import noise as noises
from pallas_kernels.sampling import reference, xla

METHODS = ("inverse", "gumbel")


class Sample(NamedTuple):
  """One token a row.

  Attributes:
    token: [B] int32.
    logprob: [B] nats, under the distribution it was drawn from (temperature
      and truncations included; 0 when greedy).
    logprob_untruncated: [B] nats, with the temperature but without truncation:
      what token_logprob gives for the same logits.
  """

  token: jax.Array
  logprob: jax.Array
  logprob_untruncated: jax.Array


def sample(
  logits: jax.Array,
  noise: jax.Array | None = None,
  *,
  temperature: float | jax.Array = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  greedy: bool = False,
  method: str = "inverse",
  impl: str | None = None,
) -> Sample:
  """Draws token ~ softmax(logits / temperature), truncated; exact, no sort.

    z = logits / temperature;  p = softmax(z)
    top-k: z >= the k-th largest;  then top-p: the smallest set of most likely
    tokens whose mass, renormalised, is at least p;  then min-p: p >= min_p
    max p.  Tokens equal to a threshold are all kept.

    inverse: block = F_blocks^-1(u_1), token = F_block^-1(u_2), blocks of 128
    gumbel: token = argmax_kept(z - log(-log(1 - u)))

  Both methods draw from the same distribution, up to float32 rounding of the
  sums (1e-7 of the total) and to the resolution of their noise: 2^-23 a level
  of "inverse", 2^-32 a token of "gumbel". A token of probability 0 is never
  drawn. A row depends on its own logits and noise only, never on the batch
  around it. Not differentiable.

  Args:
    logits: [B, V], any float dtype, computed in float32 (float64 stays); -inf
      bans a token. At least one finite entry a row; NaN and +inf are not
      allowed.
    noise: [B] typed keys, one a row (see row_keys), or, for "inverse" only,
      [B, 2] uniforms in [0, 1). None when greedy.
    temperature: divides the logits, positive; a float, or a traced scalar or
      [B].
    top_k: at least 1, or None (off); V or more is off.
    top_p: in (0, 1], or None (off); 1 is off.
    min_p: in [0, 1], or None (off); 0 is off.
    greedy: takes the first largest logit; truncations do not matter and the
      temperature only enters logprob_untruncated.
    method: "inverse" (two numbers of noise a row, the cheaper one wherever
      hashing is not free) or "gumbel" (one an entry, one reduction over V).
    impl: see dispatch.py; None follows JAXRL_KERNELS, then the platform. The
      draw does not depend on it.

  Returns:
    Sample.

  Raises:
    ValueError: for a shape or a knob outside its range.
    TypeError: if the noise is neither typed keys nor floats.

  References:
    Fan et al. 2018 (top-k), arXiv:1805.04833; Holtzman et al. 2020 (top-p),
    arXiv:1904.09751; Nguyen et al. 2024 (min-p), arXiv:2407.01082; Maddison et
    al. 2014 (Gumbel), arXiv:1411.0030; Devroye 1986, Non-Uniform Random
    Variate Generation, chapter III (inversion).
  """
  if logits.ndim != 2 or 0 in logits.shape:
    raise ValueError(f"logits must be [B, V], not empty, got {logits.shape}.")
  _check_knobs(temperature, top_k, top_p, min_p, method)
  spec = xla.Spec(
    top_k=top_k if top_k and top_k < logits.shape[1] else None,
    top_p=top_p if top_p and top_p < 1 else None,
    min_p=min_p or None,
    method="greedy" if greedy else method,
  )
  scale = _inverse_temperature(temperature, logits)
  noise = None if greedy else _noise(noise, logits.shape[0], method)
  out = dispatch.call(
    "sampling",
    impl,
    *(logits, scale, noise),
    xla=lambda *args: xla.sample(*args, spec),
    reference=lambda *args: reference.sample(*args, spec),
  )
  return Sample(*out)


def _inverse_temperature(temperature, logits):
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  # A Python number is inverted before it is rounded: once, not twice.
  scale = jnp.asarray(1.0 / temperature, dtype)
  if scale.shape not in ((), logits.shape[:1]):
    raise ValueError(
      f"temperature must be a scalar or [B] {logits.shape[:1]}, got"
      f" {scale.shape}."
    )
  return scale[:, None] if scale.ndim else scale


def _noise(noise, rows, method):
  """Keys [B] for "gumbel", uniforms [B, 2] for "inverse"."""
  if noise is None:
    raise ValueError("noise is [B] keys or [B, 2] uniforms unless greedy=True.")
  keys = jnp.issubdtype(noise.dtype, jax.dtypes.prng_key)
  if not keys and not jnp.issubdtype(noise.dtype, jnp.floating):
    raise TypeError(
      "noise is typed keys (sampling.row_keys(jax.random.key(seed), ids)) or"
      f" floats, got {noise.dtype}."
    )
  if not keys and method == "gumbel":
    raise ValueError("method='gumbel' needs keys as noise, got uniforms.")
  wanted = (rows,) if keys else (rows, 2)
  if noise.shape != wanted:
    raise ValueError(
      f"noise must be {wanted}, got {noise.shape}; one key for a batch becomes"
      " one a row by sampling.row_keys(key, ids)."
    )
  return noises.uniforms(noise) if keys and method == "inverse" else noise


def _check_knobs(temperature, top_k, top_p, min_p, method):
  number = isinstance(temperature, (int, float))
  if number and not 0 < temperature < math.inf:
    raise ValueError(
      f"temperature must be positive, got {temperature}; for the most "
      "likely token set greedy=True."
    )
  if top_k is not None and top_k < 1:
    raise ValueError(f"top_k must be at least 1 or None (off), got {top_k}.")
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1] (1 is off), got {top_p}.")
  if min_p is not None and not 0 <= min_p <= 1:
    raise ValueError(f"min_p must be in [0, 1] (0 is off), got {min_p}.")
  if method not in METHODS:
    raise ValueError(f"method is one of {METHODS}, got {method!r}.")
