"""Sampling rules: logits and two uniforms a row to one token a row.

Truncations act in the order of Hugging Face transformers: temperature, top-k,
top-p, min-p. The arithmetic is pallas_kernels.sampling: the distribution
function is inverted, so the noise is two numbers a row instead of one Gumbel
variable per vocabulary entry, and the vocabulary is never sorted.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import sampling as kernel


class Draw(NamedTuple):
  """One token a row.

  Attributes:
    token: [R] int32.
    logprob: [R] nats, under the distribution it was drawn from (temperature
      and truncations included; 0 when greedy).
    logprob_full: [R] nats, with the temperature but without truncation: what
      the trainer's log-probabilities must equal.
  """

  token: Int[Array, "R"]
  logprob: Float[Array, "R"]
  logprob_full: Float[Array, "R"]


Rule = Callable[[Float[Array, "R V"], Float[Array, "R 2"]], Draw]


def make_rule(
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  greedy: bool = False,
) -> Rule:
  """Builds draw(logits, uniforms) -> Draw; a row depends on itself only.

  The distribution is exact up to float32 rounding of the sums (about 1e-7 of
  the total) and the resolution of the uniforms (2^-23 in jax.random.uniform)
  at each level. A token of probability 0 is never drawn.

  Args:
    temperature: divides the logits; positive.
    top_k: keeps the k largest logits; 0 keeps all.
    top_p: keeps the smallest set of most likely tokens whose mass, after
      top-k, is at least p; 1 keeps all. In (0, 1].
    min_p: keeps tokens at least min_p times as likely as the likeliest; 0
      keeps all. In [0, 1].
    greedy: takes the first largest logit; the truncations do not matter and
      the temperature only enters logprob_full.

  References:
    Fan et al. 2018 (top-k), arXiv:1805.04833; Holtzman et al. 2020 (top-p),
    arXiv:1904.09751; Nguyen et al. 2024 (min-p), arXiv:2407.01082.
  """
  _check(temperature, top_k, top_p, min_p)

  def draw(logits, uniforms):
    chex.assert_rank([logits, uniforms], 2)
    chex.assert_shape(uniforms, (logits.shape[0], 2))
    out = kernel.sample(
      logits.astype(jnp.float32),
      uniforms,
      temperature=temperature,
      top_k=top_k or None,
      top_p=top_p,
      min_p=min_p,
      greedy=greedy,
    )
    return Draw(out.token, out.logprob, out.logprob_untruncated)

  return draw


def _check(temperature, top_k, top_p, min_p):
  if not 0 < temperature < math.inf:
    raise ValueError(
      f"temperature must be positive, got {temperature}; for the most "
      "likely token set greedy=True."
    )
  if top_k < 0:
    raise ValueError(f"top_k must be 0 (off) or more, got {top_k}.")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p must be in (0, 1] (1 is off), got {top_p}.")
  if not 0 <= min_p <= 1:
    raise ValueError(f"min_p must be in [0, 1] (0 is off), got {min_p}.")
