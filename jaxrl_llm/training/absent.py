"""A run without its arrays: programs that can be compiled for any devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models.weights import assemble, resolve
from jaxrl_llm.training import adapter, ahead, collectors, experiment, setup
from jaxrl_llm.training import layout as layouts


class AbsentRun:
  """A run whose arrays are shapes, on devices that need not be here.

  Attributes:
    config: the experiment.
    shape: of its model.
    layout: the mesh and where parameters and state lie on it.
    state: the train state, as jax.ShapeDtypeStruct.
    parameters: of the model.
    trained: all of these, or those of an adapter.
    stored: of the trained ones, how many lie on each device.
    resident: bytes on each device of state and reference, all the time.
    trips: times that a loop runs whose end depends on data, at most.
  """

  def __init__(
    self,
    config: experiment.Experiment,
    devices: Sequence[jax.Device] | int,
    memory: int = 0,
  ):
    """Nothing is traced yet.

    Args:
      config: the experiment.
      devices: to compile for; their number alone allows tracing.
      memory: bytes of one that is a mere number; others are asked.

    Raises:
      ValueError: one line: a model or mesh that cannot be.
    """
    self.config = config
    self.shape = resolve.shape(config.model.name)
    self.layout = layouts.Layout(config, devices, memory)
    shapes = assemble.abstract(self.shape, adapter.base_dtype(config))
    places = self.layout.parameters(self.shape, shapes)
    here = jax.devices() if isinstance(devices, int) else devices
    self._device = SingleDeviceSharding(here[0])
    self._functions = setup.functions(config, self.shape, self.layout.mesh)
    base = self._placed(shapes, places)
    learnt = jax.eval_shape(lambda base: adapter.start(config, base), base)
    fresh = jax.eval_shape(self._functions.fresh, learnt)
    self.state = self._placed(
      fresh, self.layout.state_shardings(self._functions.fresh, learnt)
    )
    frozen = "ref_logprobs" in self._functions.method.needs or config.lora.rank
    self._reference = base if frozen else None
    self._params = self._functions.attach(base, self.state.params)
    self._learnt = learnt
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    self.trained = sum(leaf.size for leaf in jax.tree.leaves(learnt))
    self.stored = held_bytes(self.state.params) / 4  # float32
    self.resident = held_bytes((self.state, self._reference))
    self.trips = config.completion_length

  def programs(self) -> Iterator[tuple[str, Callable]]:
    """Names, and functions that give a jax.stages.Traced; the largest first."""
    config, functions = self.config, self._functions
    step = self.layout.jit_step(
      functions.train_step, functions.fresh, self._learnt
    )
    yield (
      "train step",
      lambda: step.trace(
        self.state, self._rollout(config.prompts_per_step), self._reference
      ),
    )
    yield "rollout", lambda: self._generate(config.completion_length)
    yield "prefill", lambda: self._generate(1)
    score = jax.jit(
      meshes.traced_for(
        self.layout.mesh, lambda *args: functions.score(*args).logprobs
      )
    )
    yield (
      "score pass",
      lambda: score.trace(self._params, self._rollout(self._piece())),
    )

  def _piece(self) -> int:
    """Prompts of a micro-batch; one that is cut counts whole."""
    config = self.config
    pieces = config.mini_batches * config.micro_batches
    return max(config.prompts_per_step // pieces, 1)

  def _rollout(self, prompts):
    config = self.config
    arrays = ahead.example_rollout(
      prompts,
      config.group_size,
      config.prompt_length,
      config.completion_length,
      rewards=len(config.reward),
      extras=self._functions.method.plan.extras,
    )
    return self._rows(arrays)

  def _generate(self, length):
    config = self.config
    generate = collectors.generator(
      self._functions.model,
      config.sampling,
      completion_length=length,
      group_size=config.group_size,
      stop_ids=(0,),
      pad_id=0,
      mesh=self.layout.mesh,
    )
    rows = config.prompts_per_step * config.group_size
    prompt = (config.prompts_per_step, config.prompt_length)
    tokens, mask, ids = self._rows(
      (
        np.zeros(prompt, np.int32),
        np.zeros(prompt, bool),
        np.zeros(rows, np.int32),
      )
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key, step = self._placed((key, jax.ShapeDtypeStruct((), np.int32)), None)
    return generate.trace(self._params, tokens, mask, ids, key, step)

  def _rows(self, tree):
    mesh = self.layout.mesh
    if mesh is None:
      return self._placed(tree, None)
    cut = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    whole = NamedSharding(mesh, PartitionSpec())
    places = jax.tree.map(lambda x: cut if np.ndim(x) else whole, tree)
    return self._placed(tree, places)

  def _placed(self, tree, places):
    mesh = self.layout.mesh
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else self._device
    if places is None:
      places = jax.tree.map(lambda _: whole, tree)
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      tree,
      places,
    )


def held_bytes(tree: Any) -> float:
  """Bytes of a tree on one device."""
  return float(
    sum(
      np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )
