"""What every method without gradients must satisfy; see contract.py."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.methods import base
from jaxrl_llm.optimizers import anchored


def check_method(method: base.Evolution) -> None:
  """Runs every check below on one method."""
  for check in CHECKS:
    check(method)


def affine_maps_change_nothing(method: base.Evolution) -> None:
  """a f + b with a > 0 moves the weights as f does."""
  plain = _moved(method, _fitness(method))
  mapped = _moved(method, 4.0 * _fitness(method) - 1.0)
  _assert_close(method, plain, mapped)


def equal_fitness_only_decays(method: base.Evolution) -> None:
  """Nothing moves from the start; elsewhere only back to it."""
  for value in (0.0, 0.9, -3.3, jnp.nan):
    fitness = jnp.full(method.population, value)
    at_start = method.update(_start(method), _start(method), *_of(fitness))
    chex.assert_trees_all_equal(at_start[0], _start(method))
    moved, metrics = _moved(method, fitness, away=0.1, metrics=True)
    there, start = _away(method, 0.1), _start(method)
    assert float(metrics["update_norm"]) == 0.0
    before = float(anchored.drift_norm(there, start))
    after = float(anchored.drift_norm(moved, start))
    assert after <= before * (1 + 1e-6), f"drift {before} -> {after}"


def members_are_the_noise_of_their_seeds(method: base.Evolution) -> None:
  """Equal seeds, equal members; others differ on every leaf; dtypes stay."""
  params = _start(method)
  one, again, other = (
    method.perturb(params, jnp.uint32(seed)) for seed in (7, 7, 8)
  )
  chex.assert_trees_all_equal(one, again)
  chex.assert_trees_all_equal_shapes_and_dtypes(one, params)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert (np.asarray(a) != np.asarray(b)).any()


def the_best_member_pulls(method: base.Evolution) -> None:
  """With one member above the others the weights move towards it."""
  params = _start(method)
  fitness = jnp.zeros(method.population).at[0].set(1.0)
  seeds, _ = _of(fitness)
  moved, _ = method.update(params, params, seeds, fitness)
  towards = _flat(method.perturb(params, seeds[0])) - _flat(params)
  along = float(((_flat(moved) - _flat(params)) * towards).sum())
  assert along > 0 or method.population == 1, f"moved {along} towards it"


def a_failed_member_is_the_least(method: base.Evolution) -> None:
  """NaN and infinities count as the smallest fitness that is known."""
  fitness = _fitness(method)
  wanted = _moved(method, fitness.at[1].set(fitness.min()))
  for junk in (jnp.nan, jnp.inf, -jnp.inf):
    if method.population > 2:
      found = _moved(method, fitness.at[1].set(junk))
      chex.assert_trees_all_equal(found, wanted)


def jit_changes_nothing(method: base.Evolution) -> None:
  """Compiled and not compiled agree, and metrics are scalars."""
  args = _away(method, 0.1), _start(method), *_of(_fitness(method))
  plain, compiled = method.update(*args), jax.jit(method.update)(*args)
  chex.assert_trees_all_equal_shapes_and_dtypes(plain[0], args[0])
  _assert_close(method, plain[0], compiled[0])
  chex.assert_tree_all_finite(plain)
  chex.assert_shape(list(plain[1].values()), ())


CHECKS: tuple[Callable[[base.Evolution], None], ...] = (
  affine_maps_change_nothing,
  equal_fitness_only_decays,
  members_are_the_noise_of_their_seeds,
  the_best_member_pulls,
  a_failed_member_is_the_least,
  jit_changes_nothing,
)


def _start(method):
  key = jax.random.key(5)
  matrix = jax.random.normal(key, (2, 8, 5)).astype(method.weights)
  return {"layers": {"w": matrix}, "norm": jnp.linspace(0.5, 1.5, 7)}


def _away(method, size):
  return jax.tree.map(
    lambda x: (x + size * jnp.sin(jnp.arange(x.size)).reshape(x.shape)).astype(
      x.dtype
    ),
    _start(method),
  )


def _fitness(method):
  return jnp.sin(3.0 * jnp.arange(method.population)) ** 2


def _of(fitness):
  return jnp.arange(fitness.size, dtype=jnp.uint32) + 11, fitness


def _moved(method, fitness, *, away=0.0, metrics=False):
  params = _away(method, away)
  found = method.update(params, _start(method), *_of(fitness))
  return found if metrics else found[0]


def _flat(tree):
  leaves = [x.astype(jnp.float32).ravel() for x in jax.tree.leaves(tree)]
  return jnp.concatenate(leaves)


def _assert_close(method, one, other):
  """To a rounding of the dtype that the weights are kept in."""
  tolerance = 1e-6 if method.weights == "float32" else 2.0**-7
  np.testing.assert_allclose(
    _flat(one), _flat(other), rtol=tolerance, atol=1e-7
  )
