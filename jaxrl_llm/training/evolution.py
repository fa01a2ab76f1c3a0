"""One step without gradients: a pure function of state and fitness."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.optimizers import evolution
from jaxrl_llm.training import state as states

# The stream of randomness that the members' seeds are of, of the run's seed.
_STREAM = 3


def init_state(params: Any) -> states.TrainState:
  """The state before the first step; opt_state is where the weights start."""
  return states.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params),
    method_state=(),
  )


def seeds(seed: int, step: Array | int, population: int) -> Array:
  """[P] integers of a step's members."""
  key = jax.random.fold_in(jax.random.key(seed), _STREAM)
  return evolution.member_seeds(key, step, population)


def make_step(method: base.Evolution, *, seed: int):
  """Closes over everything static.

  Args:
    method: whose weights move.
    seed: of the run.

  Returns:
    step(state, fitness, reference) -> (state, metrics), jittable, of the same
    form as a step by gradients. Fitness [P] float32 is of the members of step
    number state.step; `reference` is not read.
  """

  def train_step(
    state: states.TrainState, fitness: Float[Array, "P"], reference: Any
  ) -> tuple[states.TrainState, types.Metrics]:
    del reference
    params, metrics = method.update(
      state.params,
      state.opt_state,
      seeds(seed, state.step, method.population),
      fitness,
    )
    return state.replace(step=state.step + 1, params=params), metrics

  return train_step
