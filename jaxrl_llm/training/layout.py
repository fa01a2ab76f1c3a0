"""Where a run's arrays lie: the mesh, and what each device holds of a state."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import numpy as np

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import processes, sharding, weight_sync
from jaxrl_llm.models import api
from jaxrl_llm.rollout import packing
from jaxrl_llm.training import adapter, experiment
from jaxrl_llm.training import state as states
from jaxrl_llm.training import step as steps


class Layout:
  """The placement of one run, fixed when the model's size is known.

  Attributes:
    mesh: devices that share the work, or None for one device; those that
      train, where the sampler has others.
    rollout_mesh: the sampler's own devices, or None if it has none.
  """

  def __init__(
    self,
    config: experiment.Experiment,
    devices: Sequence[jax.Device] | int | None = None,
    memory: int = 0,
  ):
    """Nothing is placed yet.

    Args:
      config: the experiment.
      devices: None means ours; absent ones, or only their number, will do.
      memory: bytes of one that is a mere number; others are asked.
    """
    self._config, self._devices, self._memory = config, devices, memory
    self.mesh: jax.sharding.Mesh | None = None
    self.rollout_mesh: jax.sharding.Mesh | None = None
    self._shape: api.ModelConfig | None = None

  def parameters(self, config: api.ModelConfig, shapes: Any) -> Any:
    """Chooses the mesh; shardings of the parameters, as assemble() wants them.

    Raises:
      ValueError: if the devices do not go with the experiment; one line.
    """
    wanted = self._config.mesh
    self._shape = config
    _check_processes(self._config)
    devices = self._devices
    if wanted.rollout:
      devices, self.rollout_mesh = meshes.split_off(
        devices if devices is not None else jax.devices(),
        wanted.rollout,
        prompts=self._config.prompts_per_step,
        tensor=wanted.tensor,
      )
    self.mesh = meshes.make_mesh(
      self._config.prompts_per_step,
      data=wanted.data,
      fsdp=wanted.fsdp,
      tensor=wanted.tensor,
      state_bytes=adapter.state_bytes(self._config, shapes),
      devices=devices,
      memory=self._memory,
    )
    if self.mesh is None:
      return None
    _check_pieces(self._config, meshes.row_shares(self.mesh))
    return sharding.parameter_shardings(config, shapes, self.mesh)

  def init_state(
    self, fresh: Callable[[Any], states.TrainState], params: Any
  ) -> states.TrainState:
    """fresh(params), made where it stays; trained `params` are used up."""
    if self.mesh is None:
      return meshes.replicate(fresh(params), None)
    places = sharding.parameter_shardings(self._shape, params, self.mesh)
    params = jax.tree.map(_placed, params, places)
    made = jax.jit(
      fresh, donate_argnums=0, out_shardings=self.state_shardings(fresh, params)
    )
    return made(params)

  def jit_step(
    self, step: steps.StepFn, fresh: Callable[[Any], states.TrainState], params
  ) -> Any:
    """The step compiled for the mesh; its state is donated and stays put."""
    if self.mesh is None:
      return jax.jit(step, donate_argnums=0)
    whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    return jax.jit(
      meshes.traced_for(self.mesh, step),
      donate_argnums=0,
      out_shardings=(self.state_shardings(fresh, params), whole),
    )

  def sync(self, model: api.LanguageModel) -> weight_sync.WeightSync:
    """What makes a sampler's parameters from the trainer's."""
    return weight_sync.WeightSync(
      model,
      self.mesh,
      rollout_mesh=self.rollout_mesh,
      keep=self._config.rollout_ahead > 0,
    )

  def packer(self, pieces: int = 0) -> packing.Packer | None:
    """What packs the rollouts of a step; None where the experiment does not.

    Args:
      pieces: that a rollout is cut into; 0: those of a step.
    """
    if not self._config.pack:
      return None
    pieces = pieces or self._config.mini_batches * self._config.micro_batches
    return packing.Packer(pieces=pieces, shares=meshes.row_shares(self.mesh))

  def state_shardings(self, fresh: Callable, params: Any) -> Any:
    """Of the state that fresh(params) makes; None leaves on one device."""
    if self.mesh is None:
      return None
    shapes = jax.eval_shape(fresh, params)
    learnt = params | (shapes.head_params or {})
    places = sharding.parameter_shardings(self._shape, learnt, self.mesh)
    return sharding.like_parameters(shapes, places, self.mesh)


def _placed(leaf, place):
  """An array of the host on the mesh; others lie there already."""
  return processes.put(leaf, place) if isinstance(leaf, np.ndarray) else leaf


def legal_micro_batches(
  config: experiment.Experiment, shares: int
) -> list[int]:
  """Counts of micro-batches whose prompts the devices share evenly, rising.

  Args:
    config: whose micro_batches is not read.
    shares: data * fsdp of the mesh.
  """
  rows = config.prompts_per_step * config.group_size // config.mini_batches
  return [
    count
    for count in range(1, rows + 1)
    if rows % count == 0
    and _prompts(rows // count, config.group_size) % shares == 0
  ]


def _prompts(rows: int, group_size: int) -> int:
  """Packed rows of a piece: one cut inside a group repeats its prompt."""
  return rows // math.gcd(rows, group_size)


def _check_pieces(config: experiment.Experiment, shares: int) -> None:
  """Refuses pieces of which every device would compute all rows."""
  legal = legal_micro_batches(config, shares)
  if config.micro_batches in legal:
    return
  pieces = config.mini_batches * config.micro_batches
  rows = config.prompts_per_step * config.group_size // pieces
  smaller = [count for count in legal if count < config.micro_batches]
  first = f"set micro_batches to {smaller[-1]}, or" if smaller else "set"
  raise ValueError(
    f"mini_batches * micro_batches = {pieces} leaves"
    f" {_prompts(rows, config.group_size)} prompts in a piece, which the"
    f" data * fsdp = {shares} devices cannot share evenly: each would compute"
    f" all of them; {first} prompts_per_step to a multiple of"
    f" {pieces * shares}, or mesh.data and mesh.fsdp smaller."
  )


def _check_processes(config: experiment.Experiment) -> None:
  """Refuses what only one process can do."""
  alone = {
    "mesh.rollout": config.mesh.rollout,
    "rollout_ahead": config.rollout_ahead,
  }
  for name, value in alone.items():
    if value and jax.process_count() > 1:
      raise ValueError(
        f"{name} must be 0 in a run of {jax.process_count()} processes, got"
        f" {value}: JAX moves no array between devices of different processes"
        " outside a program, and threads of theirs would launch programs in"
        " different orders."
      )
