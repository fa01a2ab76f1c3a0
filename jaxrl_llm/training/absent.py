"""A run without its arrays: programs that can be compiled for any devices."""

from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from jaxrl_llm.distributed import costs
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.methods import base as methods_base
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
    mesh = self.layout.mesh
    base = self._placed(shapes, places, mesh)
    learnt = jax.eval_shape(lambda base: adapter.start(config, base), base)
    fresh = jax.eval_shape(self._functions.fresh, learnt)
    self.state = self._placed(
      fresh, self.layout.state_shardings(self._functions.fresh, learnt), mesh
    )
    frozen = self._functions.method.compares or config.lora.rank
    self._reference = base if frozen else None
    self._params = self._functions.attach(base, self.state.params)
    self._learnt = learnt
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    self.trained = sum(leaf.size for leaf in jax.tree.leaves(learnt))
    self.stored = costs.held_bytes(self.state.params) / 4  # float32
    self._sync = self.layout.sync(self._functions.model)
    self._absent = isinstance(devices, int)
    copies = None if self._absent else self._sync.copies(self._params)
    self._copied = costs.held_bytes(copies)
    self.resident = costs.held_bytes((self.state, self._reference))
    if not self.layout.rollout_mesh:  # else they lie elsewhere
      self.resident += config.rollout_ahead * self._copied
    self.trips = config.completion_length

  def programs(self) -> Iterator[tuple[str, Callable]]:
    """Names, and functions that give a jax.stages.Traced; the largest first."""
    config, functions = self.config, self._functions
    step = self.layout.jit_step(
      functions.train_step, functions.fresh, self._learnt
    )
    yield (
      "train step",
      lambda: step.trace(self.state, self._given(), self._reference),
    )
    traced = None if self._absent else self._sync.trace(self._params)
    if traced is not None:
      yield "weight sync", lambda: traced
    yield "rollout", lambda: self._generate(config.completion_length)
    yield "prefill", lambda: self._generate(1)
    score = jax.jit(
      meshes.traced_for(
        self.layout.mesh, lambda *args: functions.score(*args).logprobs
      )
    )
    yield (
      "score pass",
      lambda: score.trace(self._params, self._rollout(self._piece(), 1)),
    )

  def beside(self, name: str, arguments: float) -> float:
    """Bytes on a device while a program runs that are none of its arguments.

    Args:
      name: as programs() has it.
      arguments: bytes of the program's on one device.
    """
    if name in ("rollout", "prefill"):
      if self.layout.rollout_mesh:
        return 0.0
      if not self.config.rollout_ahead:  # made for it, and freed after it
        arguments -= self._copied
    return max(self.resident - arguments, 0.0)

  def _given(self):
    """What a train step is given beside its state."""
    method = self._functions.method
    if isinstance(method, methods_base.Evolution):
      fitness = np.zeros(method.population, np.float32)
      return self._placed(fitness, None, self.layout.mesh)
    return self._rollout(self.config.prompts_per_step, 0)

  def _piece(self) -> int:
    """Prompts of a micro-batch on all devices; one that is cut counts whole."""
    config = self.config
    pieces = config.mini_batches * config.micro_batches
    shares = meshes.row_shares(self.layout.mesh)
    prompts = max(config.prompts_per_step // pieces, 1)
    return -(-prompts // shares) * shares

  def _rollout(self, prompts, pieces):
    """Shapes; of packed ones the largest, `pieces` as in Layout.packer."""
    config = self.config
    arrays = ahead.example_rollout(
      prompts,
      config.group_size,
      config.prompt_length,
      config.completion_length,
      rewards=len(config.reward),
      extras=self._functions.method.plan.extras,
      versions=config.rollout_ahead > 0,
    )
    packer = self.layout.packer(pieces)
    arrays = packer.largest(arrays) if packer else arrays
    return self._rows(arrays, self.layout.mesh)

  def _generate(self, length):
    config, mesh = self.config, self._sync.rollout_mesh
    generate = collectors.generator(
      self._functions.model,
      config.sampling,
      completion_length=length,
      group_size=config.group_size,
      stop_ids=(0,),
      pad_id=0,
      mesh=mesh,
    )
    rows = config.prompts_per_step * config.group_size
    prompt = (config.prompts_per_step, config.prompt_length)
    tokens, prompt_mask, ids = self._rows(
      (
        np.zeros(prompt, np.int32),
        np.zeros(prompt, bool),
        np.zeros(rows, np.int32),
      ),
      mesh,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    scalars = key, jax.ShapeDtypeStruct((), np.int32)
    key, step = self._placed(scalars, None, mesh)
    params = self._params
    if mesh is not None and not self._absent:
      params = self._sync.targets(params)
    return generate.trace(params, tokens, prompt_mask, ids, key, step)

  def _rows(self, tree, mesh):
    if mesh is None:
      return self._placed(tree, None, mesh)
    cut = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
    whole = NamedSharding(mesh, PartitionSpec())
    places = jax.tree.map(lambda x: cut if np.ndim(x) else whole, tree)
    return self._placed(tree, places, mesh)

  def _placed(self, tree, places, mesh):
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else self._device
    if places is None:
      places = jax.tree.map(lambda _: whole, tree)
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      tree,
      places,
    )
