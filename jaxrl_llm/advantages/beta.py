"""Advantages over a Beta density of the groups' success rates (BNPO).

Rows of weight 0 take no part and get exactly 0; so does a group whose counted
rewards are all equal, whatever the constant.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float

from jaxrl_llm.advantages import group
from pallas_kernels import group_stats

# Below this variance of the success rates there is no density to fit.
_LEAST_VARIANCE = 1e-12
# From here on Stirling's series is exact to the last digit.
_LARGE = 10.0


class Density(NamedTuple):
  """A Beta density of mode m, Beta(1 + n m, 1 + n (1 - m)).

  Attributes:
    mode: m, in [0, 1].
    size: n, 0 or more; 0 is the uniform density, whatever m.
  """

  mode: Array
  size: Array

  def log_prob(self, rates: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-density of rates in [0, 1]; -inf where it vanishes.

      log(n + 1) + log C(n, n m) + n (m log p + (1 - m) log(1 - p))

    written as Stirling corrections minus n KL(m || p), so that nothing large
    cancels.
    """
    other = 1.0 - self.mode
    ones, zeros = self.size * self.mode, self.size * other
    # n KL(m || p), from the difference: 1 - p would lose its last digits.
    away = _excess(ones, self.mode, rates - self.mode)
    away += _excess(zeros, other, self.mode - rates)
    start = _correction(self.size) - _correction(ones) - _correction(zeros)
    return jnp.log1p(self.size) + start - away


def fitted(
  rates: Float[Array, "B"], counted: Float[Array, "B"] | None = None
) -> Density:
  """The density that makes the variance of the policy gradient least.

    v = variance of the rates over B - 1,  c = m (1 - m) / v - 1
    a = c m,  b = c (1 - m)                      p ~ Beta(a, b), by moments
    alpha = max(1, 1 + a / 3),  beta = max(1, 1 + b / 3)

  a and b have one sign, so both are floored or none: n = max(0, c) / 3. Uniform
  also where v is 0, one prompt included (our reading: the official code divides
  0 by 0 where several prompts have one rate).

  Args:
    rates: success rate of each prompt, in [0, 1].
    counted: which of them to look at; None: all.
  """
  counted = group.counted_rows(counted, rates)
  found = group_stats.group_moments(rates, rates.size, mask=counted)
  mean = found.mean[0, 0]
  variance = (found.squares / jnp.maximum(found.count - 1, 1))[0, 0]
  spread = variance >= _LEAST_VARIANCE
  concentration = mean * (1 - mean) / jnp.where(spread, variance, 1.0) - 1.0
  size = jnp.where(spread, jnp.maximum(concentration, 0.0) / 3.0, 0.0)
  return Density(mode=mean, size=size)


def beta_normalized(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  min_value: float | Float[Array, ""] = 0.0,
  max_value: float | Float[Array, ""] = 1.0,
  max_weight: float = 1e6,
) -> Float[Array, "N"]:
  """Centres in the group, divides by a density of the group's success rate.

    x   = (r - min_value) / (max_value - min_value),  p_g = mean_g x
    A_i = min(1 / f(p_g), max_weight) (x_i - p_g)

  f is fitted to the rates of this batch, see `fitted`. It is 1, and A_i plain
  x_i - p_g, for one prompt, where all rates are equal, and where they lie far
  apart. With binary rewards whose rates give alpha = beta = 3/2 it is GRPO's
  advantage, std over G, times pi / 8.

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N; with 1 all advantages are 0.
    min_value: the lowest reward that the task can give.
    max_value: the highest; the rate of a group is clipped to [0, 1].
    max_weight: bound of 1 / f, which is infinite at rates 0 and 1.

  Returns:
    Advantages, dimensionless, summing to zero in each group.

  References:
    Xiao et al. 2025, BNPO, arXiv:2506.02864, and its official code.
  """
  chex.assert_rank(rewards, 1)
  counted = group.counted_rows(weights, rewards)
  found = group_stats.group_moments(rewards, group_size, mask=counted)
  width = max_value - min_value
  rates = jnp.clip((found.mean[:, 0] - min_value) / width, 0.0, 1.0)
  density = fitted(rates, found.count[:, 0])
  scale = jnp.minimum(jnp.exp(-density.log_prob(rates)), max_weight)
  return (scale[:, None] * found.centred / width).reshape(-1)


def beta_normalized_components(
  components: Float[Array, "N K"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ranges: Sequence[tuple[float, float]] = ((0.0, 1.0),),
  max_weight: float = 1e6,
) -> Float[Array, "N"]:
  """The mean of beta_normalized of each component (advantage decomposition).

    A_i = 1 / K sum_k A_ik

  each with its own rates and density. A constant component adds nothing, but
  is among the K; so is one that is NaN, where it does not apply to a row.

  Args:
    components: X, groups contiguous, NaN where one does not apply.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    ranges: (min_value, max_value) of each component, or one for all.
    max_weight: bound of 1 / f.

  Returns:
    Advantages, dimensionless, summing to zero in each group.

  Raises:
    ValueError: unless there is one range, or one for each component.
  """
  chex.assert_rank(components, 2)
  count = components.shape[1]
  if len(ranges) not in (1, count):
    raise ValueError(
      f"ranges must be one, or one for each of {count} components, got"
      f" {len(ranges)}."
    )
  bounds = jnp.broadcast_to(jnp.asarray(ranges, components.dtype), (count, 2))
  present = ~jnp.isnan(components)
  present &= group.counted_rows(weights, components[:, 0])[:, None]

  def normalize(values, rows, bound):
    return beta_normalized(
      values,
      rows,
      group_size=group_size,
      min_value=bound[0],
      max_value=bound[1],
      max_weight=max_weight,
    )

  advantages = jax.vmap(normalize, in_axes=(1, 1, 0), out_axes=1)(
    components, present.astype(components.dtype), bounds
  )
  return advantages.mean(axis=1)


def check_range(min_value: float, max_value: float) -> None:
  """Raises ValueError unless min_value < max_value, both finite."""
  if not (-float("inf") < min_value < max_value < float("inf")):
    raise ValueError(
      "min_value must be below max_value, both finite; got"
      f" {min_value} and {max_value}."
    )


def _excess(weight, mode, step) -> Array:
  """weight * log(mode / (mode + step)), 0 where the weight is."""
  some = weight > 0
  ratio = jnp.maximum(step / jnp.where(some, mode, 1.0), -1.0)
  return -jnp.where(some, weight * jnp.log1p(jnp.where(some, ratio, 0.0)), 0.0)


def _correction(x) -> Array:
  """log Gamma(x + 1) - (x log x - x): 0 at 0, then about log(2 pi x) / 2."""
  large = jnp.maximum(x, _LARGE)
  inverse = 1.0 / large
  series = inverse / 12 - inverse**3 / 360 + inverse**5 / 1260
  small = jnp.minimum(x, _LARGE)
  direct = special.gammaln(small + 1) - special.xlogy(small, small) + small
  return jnp.where(
    x > _LARGE, 0.5 * jnp.log(2 * jnp.pi * large) + series, direct
  )
