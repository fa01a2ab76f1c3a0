"""Gradients of a method on many rollouts of one policy: real train steps."""

from collections.abc import Callable, Sequence
from typing import Any

import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.models import api
from jaxrl_llm.training import score
from jaxrl_llm.training import state as states
from jaxrl_llm.training import step as stepping


def make_gradients(
  model: api.LanguageModel, method: base.Method
) -> Callable[[Any, Sequence[types.Rollout]], np.ndarray]:
  """(params, rollouts) -> [rollouts, parameters], each one's first update.

  Compiles when first called.

  Args:
    model: whose parameters they are.
    method: with a plan of one round.
  """
  optimizer = _remembered()
  step = stepping.make_train_step(
    score.make_score(model, needs=method.needs), method, optimizer
  )

  def gradient(params, rollout):
    state = states.init_state(params, method, optimizer)
    leaves = jax.tree.leaves(step(state, rollout, params)[0].opt_state)
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

  run = jax.jit(
    lambda params, rollouts: jax.lax.map(
      lambda rollout: gradient(params, rollout), rollouts
    ),
    compiler_options=tasks.COMPILER,
  )

  def gradients(params, rollouts):
    stacked = jax.tree.map(lambda *x: np.stack(x), *rollouts)
    return np.asarray(run(params, stacked), np.float64)

  return gradients


def relative_variance(found: np.ndarray) -> float:
  """Variance of a gradient over the square of its mean, both over all of it.

    tr Cov(g) / |E g|^2

  The scale of an estimator does not matter. |E g|^2 is without the bias that
  the noise of the mean would add.

  Args:
    found: [rollouts, parameters].
  """
  count = len(found)
  squares = (found**2).sum()
  mean_square = ((found.sum(axis=0) ** 2).sum() - squares) / (
    count * (count - 1)
  )
  return float((squares / count - mean_square) / mean_square)


def _remembered() -> optax.GradientTransformation:
  """Moves nothing; its state is the gradient."""
  return optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params=None: (
      jax.tree.map(jnp.zeros_like, grads),
      grads,
    ),
  )
