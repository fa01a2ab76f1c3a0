"""Whether a run fits devices that are not here: its programs, compiled.

The TPU's compiler runs without a TPU and says what each program needs on each
device. Nothing is said of time: the compiler's estimates of that do not hold.
"""

from collections.abc import Callable, Iterator
import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from jaxrl_llm.distributed import costs
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models.weights import assemble, resolve
from jaxrl_llm.training import ahead, experiment, setup
from jaxrl_llm.training import layout as layouts
from pallas_kernels import aot, blocks

_REFUSAL = re.compile(
  r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)G\)"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program, per device.

  Attributes:
    name: "train step", "score pass", "prefill" or "rollout".
    needed: bytes while it runs, with what stays on the device meanwhile; of
      a refused program what its compiler said.
    fits: whether the device has them.
    arguments, temporaries: bytes; None if refused.
    flops: of matrix products, over all devices.
    collectives: bytes received by kind; None where they cannot be read.
    seconds: it took to compile here.
  """

  name: str
  needed: float
  fits: bool
  arguments: float | None = None
  temporaries: float | None = None
  flops: float
  collectives: dict[str, float] | None = None
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run needs of a topology.

  Attributes:
    topology: "v5e:16x16".
    mesh: devices by axis.
    parameters: of the model.
    resident: bytes on each device of state and reference, all the time.
    available: bytes that a program may have on a device.
    programs: in the order in which they were compiled.
    micro_batches, remat: of the experiment.
  """

  topology: str
  mesh: dict[str, int]
  parameters: int
  resident: float
  available: float
  programs: list[Program]
  micro_batches: int
  remat: str

  @property
  def fits(self) -> bool:
    """Whether every program fits."""
    return all(program.fits for program in self.programs)

  @property
  def needed(self) -> float:
    """Bytes of the largest program."""
    return max(program.needed for program in self.programs)


def make(
  config: experiment.Experiment,
  topology: str,
  *,
  only: tuple[str, ...] = (),
  say: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Compiles a run's programs for a topology.

  Stops at the first that does not fit.

  Args:
    config: the experiment.
    topology: chip and shape, as the compiler names them: "v5e:4x4",
      "v5p:4x4x4", "v6e:8x8".
    only: names of programs to compile; empty means all.
    say: told what is being compiled.

  Raises:
    ValueError: one line: a topology, model or mesh that cannot be.
    ModuleNotFoundError: if the compiler (libtpu) is not installed.
  """
  experiment.validate(config)
  known = blocks.CHIPS.get(topology.split(":")[0])
  if known is None:
    raise ValueError(
      f"--topology {topology!r} names no chip; write one of"
      f" {', '.join(blocks.CHIPS)}, a colon and a shape, as in v5e:4x4."
    )
  run = _Absent(config, _devices(topology))
  programs = []
  for name, lower in run.programs():
    if only and name not in only:
      continue
    say(f"compiling the {name} for {topology}")
    programs.append(_compile(name, lower, run, known.hbm_bytes))
    if not programs[-1].fits:
      break
  return Plan(
    topology=topology,
    mesh=dict(run.layout.mesh.shape) if run.layout.mesh else {"device": 1},
    parameters=run.parameters,
    resident=run.resident,
    available=known.hbm_bytes,
    programs=programs,
    micro_batches=config.micro_batches,
    remat=config.model.remat,
  )


def search(
  config: experiment.Experiment,
  topology: str,
  *,
  say: Callable[[str], None] = lambda line: None,
) -> list[Plan]:
  """The largest micro-batch of the train step that fits, for each remat policy.

  Args: as make().

  Returns:
    A plan of the train step alone for every pair that was tried, by policy;
    the last of a policy fits, or nothing does.
  """
  found = []
  rows = config.prompts_per_step * config.group_size // config.mini_batches
  for remat in ("none", "dots", "full"):
    pieces = 1
    while pieces <= rows and rows % pieces == 0:
      tried = dataclasses.replace(
        config,
        micro_batches=pieces,
        model=dataclasses.replace(config.model, remat=remat),
      )
      say(f"remat {remat}, {pieces} micro-batches")
      found.append(make(tried, topology, only=("train step",)))
      if found[-1].fits:
        break
      pieces *= 2
  return found


class _Absent:
  """A run whose arrays are shapes on devices that are not here."""

  def __init__(self, config, devices):
    self._config = config
    self._shape = resolve.shape(config.model.name)
    self.layout = layouts.Layout(config, devices)
    shapes = assemble.abstract(self._shape)
    places = self.layout.parameters(self._shape, shapes)
    self._device = SingleDeviceSharding(devices[0])
    self._functions = setup.functions(config, self._shape, self.layout.mesh)
    self._params = self._placed(shapes, places)
    fresh = jax.eval_shape(self._functions.fresh, self._params)
    self._state = self._placed(
      fresh, self.layout.state_shardings(self._functions.fresh, self._params)
    )
    needs = self._functions.method.needs
    self._reference = self._params if "ref_logprobs" in needs else None
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    self.resident = _held((self._state, self._reference))
    self.trips = config.completion_length

  def programs(self) -> Iterator[tuple[str, Callable]]:
    """Names, and functions that trace; the largest first."""
    config, functions = self._config, self._functions
    step = self.layout.jit_step(
      functions.train_step, functions.fresh, self._params
    )
    yield (
      "train step",
      lambda: step.trace(
        self._state, self._rollout(config.prompts_per_step), self._reference
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
    """Prompts of a micro-batch, at least one on each device."""
    config = self._config
    pieces = config.mini_batches * config.micro_batches
    least = meshes.row_shares(self.layout.mesh)
    return max(config.prompts_per_step // pieces, least)

  def _rollout(self, prompts):
    config = self._config
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
    config = self._config
    generate = setup.generator(
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


def _devices(topology):
  try:
    return aot.devices(topology)
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    reason = " ".join(str(error).split())[:120]
    raise ValueError(
      f"--topology {topology!r} is unknown to the compiler; v5e and v6e have"
      f" two numbers, v4 and v5p three, as in v5p:4x4x4. ({reason})"
    ) from error


def _compile(name, lower, run, available) -> Program:
  start = time.perf_counter()
  traced = lower()
  flops = costs.flops(traced.jaxpr, unknown_trips=run.trips)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    found = _REFUSAL.search(str(error))
    if not found:
      raise
    needed = float(found[1]) * _UNITS[found[2]]
    return Program(
      name=name,
      needed=needed,
      fits=False,
      flops=flops,
      seconds=time.perf_counter() - start,
    )
  size = costs.program_bytes(compiled)
  # What this program does not get as arguments stays on the device.
  beside = max(run.resident - size["arguments"], 0)
  return Program(
    name=name,
    needed=size["total"] + beside,
    fits=size["total"] + beside <= available,
    arguments=size["arguments"],
    temporaries=size["temporaries"],
    flops=flops,
    collectives=_collectives(compiled, run.trips),
    seconds=time.perf_counter() - start,
  )


def _collectives(compiled, trips):
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:
    return None  # this compiler cannot print some programs of v6e
  return costs.collective_bytes(text, unknown_trips=trips)


def _held(tree: Any) -> float:
  """Bytes of a tree on one device."""
  return float(
    sum(
      np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )
