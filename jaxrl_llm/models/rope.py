"""Rotary positions: angles once per call, outside the layers.

Dimension i of a head turns together with dimension i + d / 2 (the half-split
layout of Hugging Face folders) by position * frequency[i].
"""

import math

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxrl_llm.models import api

SCALINGS = ("linear", "llama3", "yarn")
Tables = tuple[Float[Array, "R L h"], Float[Array, "R L h"]]


def frequencies(
  head_dim: int, theta: float, scaling: api.RopeScaling | None = None
) -> tuple[np.ndarray, float]:
  """Radians per token of each pair, and the factor on cosine and sine.

    f_i = theta^(-2 i / d),  then by `scaling.kind`:
    linear  f / factor
    llama3  f where the wavelength 2 pi / f is short against the context,
            f / factor where it is long, a straight line between
    yarn    the same by index i, with cosine and sine times 0.1 ln(factor) + 1

  Args:
    head_dim: d, even.
    theta: base.
    scaling: how the context is stretched; None leaves it.

  Returns:
    float32 [d / 2], and the factor (1 but for yarn).

  References:
    Su et al. 2021, arXiv:2104.09864; Peng et al. 2023, arXiv:2309.00071;
    transformers, modeling_rope_utils.py (float32 throughout, as here).
  """
  if head_dim % 2:
    raise ValueError(f"head_dim must be even, got {head_dim}.")
  steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  base = np.float32(1) / np.power(np.float32(theta), steps)
  if scaling is None:
    return base, 1.0
  if scaling.kind == "linear":
    return base / np.float32(scaling.factor), 1.0
  if scaling.kind == "llama3":
    return _llama3(base, scaling), 1.0
  if scaling.kind == "yarn":
    return _yarn(base, head_dim, theta, scaling)
  raise ValueError(
    f"rope_scaling.kind must be one of {', '.join(SCALINGS)},"
    f" got {scaling.kind!r}."
  )


def tables(
  positions: Int[Array, "R L"],
  head_dim: int,
  theta: float,
  scaling: api.RopeScaling | None = None,
) -> Tables:
  """Cosine and sine of each position's angles, float32 [R, L, d / 2]."""
  chex.assert_rank(positions, 2)
  turn, factor = frequencies(head_dim, theta, scaling)
  angles = positions[..., None].astype(jnp.float32) * turn[None, None]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Float[Array, "R L H d"], rope: Tables) -> Float[Array, "R L H d"]:
  """Turns each head's pairs (i, i + d / 2) by the angles of `tables`."""
  cos, sin = (table[:, :, None] for table in rope)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def _llama3(base, scaling):
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  wavelength = 2 * math.pi / base
  context = scaling.original_positions
  smooth = (context / wavelength - low) / (high - low)
  between = (1 - smooth) * base / scaling.factor + smooth * base
  turn = np.where(wavelength > context / low, base / scaling.factor, between)
  return np.where(wavelength < context / high, base, turn).astype(np.float32)


def _yarn(base, head_dim, theta, scaling):
  def index_of(turns):
    """Index of the pair that makes `turns` turns in the trained context."""
    wavelength = scaling.original_positions / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(theta))

  low = max(math.floor(index_of(scaling.beta_fast)), 0)
  high = min(math.ceil(index_of(scaling.beta_slow)), head_dim - 1)
  span = max(high - low, 0.001)
  ramp = np.clip((np.arange(head_dim // 2) - low) / span, 0, 1)
  turn = base / scaling.factor * ramp + base * (1 - ramp)
  factor = scaling.attention_factor
  if factor is None:
    factor = 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
  return turn.astype(np.float32), factor
