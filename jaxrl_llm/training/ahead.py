"""Compiles the train step beside the first rollout instead of after it."""

from collections.abc import Mapping
import concurrent.futures
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.training import state as states


class CompiledSteps:
  """A jitted train step, compiled once for each size of packed rollouts."""

  def __init__(self, train_step: Any):
    """Compiles nothing yet.

    Args:
      train_step: jitted, (state, rollout, reference).
    """
    self._train_step = train_step
    self._begun: dict[Any, concurrent.futures.Future] = {}

  def begin(
    self, state: states.TrainState, rollout: types.Rollout, reference
  ) -> concurrent.futures.Future:
    """Begins to compile in a thread, unless that was begun before."""
    sizes = tuple(leaf.shape for leaf in jax.tree.leaves(rollout.packing))
    if sizes not in self._begun:
      self._begun[sizes] = compile_ahead(
        self._train_step, state, rollout, reference
      )
    return self._begun[sizes]


def compile_ahead(
  train_step: Any, state: states.TrainState, rollout: types.Rollout, reference
) -> concurrent.futures.Future:
  """Compiles a jitted train step in a thread, beside the first rollout."""
  shapes = jax.tree.map(_shape_of, (state, rollout, reference))
  thread = concurrent.futures.ThreadPoolExecutor(1)
  future = thread.submit(lambda: train_step.lower(*shapes).compile())
  thread.shutdown(wait=False)
  return future


def _shape_of(leaf):
  sharding = getattr(leaf, "sharding", None)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def example_rollout(
  prompts: int,
  group_size: int,
  prompt_length: int,
  completion_length: int,
  *,
  rewards: int = 0,
  extras: Mapping[str, types.Extra] = MappingProxyType({}),
  versions: bool = False,
) -> types.Rollout:
  """Arrays of the shapes that a step is given; zeros.

  Args:
    prompts: B.
    group_size: G.
    prompt_length: S, tokens.
    completion_length: T, tokens.
    rewards: K, columns of reward_components; 0 leaves them out, as
      Samples.rollout does without summary.with_components.
    extras: the arrays that the method's plan adds.
    versions: what rollouts.Gathered.with_versions adds.
  """
  rows = prompts * group_size
  prompt, shape = (rows, prompt_length), (rows, completion_length)
  arrays = {"behaviour_logprobs": np.zeros(shape, np.float32)}
  sizes = {"N": rows, "S": prompt_length, "T": completion_length}
  arrays |= {name: extra.zeros(**sizes) for name, extra in extras.items()}
  if versions:
    arrays["stale"] = np.zeros(rows, np.float32)
    arrays["policy_version"] = np.zeros(shape, np.int32)
  if rewards:
    for name in ("reward_components", "reward_weights"):
      arrays[name] = np.zeros((rows, rewards), np.float32)
  return types.Rollout(
    prompts=np.zeros(prompt, np.int32),
    prompt_mask=np.zeros(prompt, bool),
    completions=np.zeros(shape, np.int32),
    mask=np.zeros(shape, bool),
    old_logprobs=np.zeros(shape, np.float32),
    rewards=np.zeros(rows, np.float32),
    weights=np.zeros(rows, np.float32),
    finish_reason=np.zeros(rows, np.int32),
    extras=arrays,
    group_size=group_size,
  )
