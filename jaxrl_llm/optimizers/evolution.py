"""Evolution strategies: a step in weight space from rewards alone.

    eps_j ~ N(0, I)         drawn from the integer seed_j
    f_j = reward of params + sigma eps_j
    z = (f - mean f) / (std f + eps)                     std over Npop
    params <- params + alpha / Npop sum_j z_j eps_j

The noise is drawn again wherever it is needed and never kept. That of a leaf
is a function of its member's seed and the leaf's number in the tree alone, so
it is the same on every device and however the leaf is cut.

References:
  Evolution strategies at scale, arXiv:2509.24372. 1 / sigma is part of alpha.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def member_seeds(
  key: jax.Array, step: Int[Array, ""] | int, population: int
) -> UInt32[Array, "P"]:
  """An integer for each member of a step's population.

  Args:
    key: typed, of the run.
    step: number of the step.
    population: P, at least 1.
  """
  if population < 1:
    raise ValueError(f"population must be at least 1, got {population}.")
  return jax.random.bits(jax.random.fold_in(key, step), (population,))


def noise(
  seed: UInt32[Array, ""], number: int, shape: tuple[int, ...]
) -> Float[Array, "..."]:
  """eps of one member on leaf `number` of a tree, float32."""
  key = jax.random.fold_in(jax.random.key(seed), number)
  return jax.random.normal(key, shape, jnp.float32)


def perturbed(params: Any, seed: UInt32[Array, ""], *, sigma: float) -> Any:
  """A member: params + sigma eps, in the dtypes of `params`.

  Always from the parameters that are kept: nothing is subtracted again, so
  rounding does not add up over members.

  Args:
    params: pytree, any floating dtypes; sums are in float32.
    seed: of the member.
    sigma: deviation of the noise, in units of the parameters.
  """
  return _by_number(
    lambda number, leaf: (
      leaf + sigma * noise(seed, number, leaf.shape)
    ).astype(leaf.dtype),
    params,
  )


def standardized(
  fitness: Float[Array, "P"], *, eps: float = 1e-8
) -> Float[Array, "P"]:
  """z = (f - mean f) / (std f + eps); what is not finite is the least.

  Exactly 0 where all are equal, one member alone among them. A map a f + b
  with a > 0 changes nothing, up to eps.

  Args:
    fitness: mean reward of each member, in float32 or wider.
    eps: added to the deviation, in units of reward.
  """
  chex.assert_rank(fitness, 1)
  fitness = finite(fitness)
  fitness -= fitness[:1]  # equal ones are 0 to the bit, in any units
  centred = fitness - fitness.mean()
  return centred / (jnp.sqrt((centred**2).mean()) + eps)


def finite(fitness: Float[Array, "P"]) -> Float[Array, "P"]:
  """The least finite fitness in place of what is not finite; 0 if none is."""
  known = jnp.isfinite(fitness)
  least = jnp.min(jnp.where(known, fitness, jnp.inf))
  least = jnp.where(known.any(), least, 0.0)
  return jnp.where(known, fitness, least)


def recombined(
  z: Float[Array, "P"], draw: Callable[[Array], Float[Array, "..."]]
) -> Float[Array, "..."]:
  """sum_j z_j eps_j / P of one leaf, one member after another.

  Args:
    z: credit of each member.
    draw: number of a member -> its eps on this leaf.
  """
  shape = jax.eval_shape(draw, jnp.zeros((), jnp.int32))
  zeros = jnp.zeros(shape.shape, jnp.promote_types(shape.dtype, z.dtype))
  add = lambda j, total: total + z[j] * draw(j)  # noqa: E731
  return jax.lax.fori_loop(0, z.shape[0], add, zeros) / z.shape[0]


def ascent(params: Any, seeds: UInt32[Array, "P"], z: Float[Array, "P"]) -> Any:
  """sum_j z_j eps_j / P for every leaf, float32; noise of one leaf at a time.

  Args:
    params: tree whose shapes are wanted.
    seeds: of the members.
    z: their credit.
  """
  chex.assert_equal_shape([seeds, z])
  return _by_number(
    lambda number, leaf: recombined(
      z, lambda j: noise(seeds[j], number, leaf.shape)
    ),
    params,
  )


def _by_number(function, params):
  """function(number of the leaf, leaf) on every leaf."""
  leaves, tree = jax.tree.flatten(params)
  return tree.unflatten(map(function, range(len(leaves)), leaves))
