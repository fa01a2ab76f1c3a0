"""Whether a run fits devices that are not here: its programs, compiled.

The TPU's compiler runs without a TPU and says what each program needs on each
device. Where it is not installed, arithmetic says it instead (estimate.py). A
state that no device can hold is refused before anything is compiled. Nothing
is said of time: the compiler's estimates of that do not hold.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import re
import time

import jax

from jaxrl_llm.distributed import costs
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.training import absent, estimate, experiment
from jaxrl_llm.training import layout as layouts
from pallas_kernels import aot, blocks

# What the compiler says of a program that is too large, early and late.
_REFUSALS = (
  re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM \([\d.]+G\)"),
  re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+G hbm"),
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One compiled program, per device.

  Attributes:
    name: "train step", "weight sync" (where one is needed), "rollout",
      "prefill" or "score pass".
    needed: bytes while it runs, with what stays on the device meanwhile; of
      a refused program what its compiler said.
    fits: whether the device has them.
    arguments, temporaries: bytes; None if refused. Of an estimate: what stays
      on the device, and the rest.
    parts: of an estimate's temporaries, bytes by name.
    flops: of matrix products, over all devices.
    collectives: bytes received by kind; None where they cannot be read.
    seconds: it took to compile here.
  """

  name: str
  needed: float
  fits: bool
  arguments: float | None = None
  temporaries: float | None = None
  parts: dict[str, float] = dataclasses.field(default_factory=dict)
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
    trained: of them, or of its adapter.
    resident: bytes on each device of state and reference, all the time.
    available: bytes that a program may have on a device.
    programs: in the order in which they were compiled.
    micro_batches, remat: of the experiment.
    estimated: whether the programs' bytes are arithmetic, not a compiler's.
  """

  topology: str
  mesh: dict[str, int]
  parameters: int
  trained: int
  resident: float
  available: float
  programs: list[Program]
  micro_batches: int
  remat: str
  estimated: bool = False

  @property
  def fits(self) -> bool:
    """Whether state, reference and every program fit."""
    return self.resident <= self.available and all(
      program.fits for program in self.programs
    )

  @property
  def needed(self) -> float:
    """Bytes of the largest program; of state and reference if none was made."""
    return max([self.resident, *(program.needed for program in self.programs)])


def make(
  config: experiment.Experiment,
  topology: str,
  *,
  only: tuple[str, ...] = (),
  say: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Compiles a run's programs for a topology, or estimates them.

  Stops at the first that does not fit, and before the first where state and
  reference alone do not.

  Args:
    config: the experiment.
    topology: chip and shape, as the compiler names them: "v5e:4x4",
      "v5p:4x4x4", "v6e:8x8".
    only: names of programs to compile; empty means all.
    say: told what is being compiled.

  Raises:
    ValueError: one line: a topology, model or mesh that cannot be.
  """
  experiment.validate(config)
  chip, devices = _parse(topology)
  return _plan(config, devices, topology, chip.hbm_bytes, only, say)


def here(
  config: experiment.Experiment,
  available: int,
  *,
  only: tuple[str, ...] = (),
  say: Callable[[str], None] = lambda line: None,
) -> Plan:
  """The plan of a run on this machine's own devices.

  Args:
    config, only, say: as make().
    available: bytes that a program may have on one device.

  Raises:
    ValueError: one line: a model or mesh that cannot be.
  """
  devices = jax.devices()
  kind = f"{len(devices)} x {devices[0].device_kind}"
  return _plan(config, devices, kind, available, only, say)


def _plan(config, devices, topology, available, only, say) -> Plan:
  run = absent.AbsentRun(config, devices, available)
  made = Plan(
    topology=topology,
    mesh=dict(run.layout.mesh.shape) if run.layout.mesh else {"device": 1},
    parameters=run.parameters,
    trained=run.trained,
    resident=run.resident,
    available=available,
    programs=[],
    micro_batches=config.micro_batches,
    remat=config.model.remat,
    estimated=isinstance(devices, int),
  )
  for name, trace in run.programs():
    if not made.fits:
      break
    if only and name not in only:
      continue
    if made.estimated:
      say(f"estimating the {name} for {topology}: libtpu is not installed")
      program = _estimate(name, trace, run, available)
    else:
      say(f"compiling the {name} for {topology}")
      program = _compile(name, trace, run, available)
    made.programs.append(program)
  return made


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
    the last of a policy fits, or nothing does. A single plan where no policy
    can help: state and reference alone do not fit.
  """
  found = []
  chip, devices = _parse(topology)
  whole = dataclasses.replace(config, micro_batches=1)
  shares = meshes.row_shares(
    absent.AbsentRun(whole, devices, chip.hbm_bytes).layout.mesh
  )
  legal = layouts.legal_micro_batches(config, shares)
  for remat in ("none", "dots", "full"):
    for pieces in (n for n in legal if n.bit_count() == 1):
      tried = dataclasses.replace(
        config,
        micro_batches=pieces,
        model=dataclasses.replace(config.model, remat=remat),
      )
      say(f"remat {remat}, {pieces} micro-batches")
      found.append(make(tried, topology, only=("train step",)))
      if not found[-1].programs:
        return found
      if found[-1].fits:
        break
  return found


def _parse(topology: str) -> tuple[blocks.Chip, Sequence[jax.Device] | int]:
  """Chip and devices of a topology; their number if there is no compiler."""
  name, _, shape = topology.partition(":")
  chip = blocks.CHIPS.get(name)
  if chip is None:
    raise ValueError(
      f"--topology {topology!r} names no chip; write one of"
      f" {', '.join(blocks.CHIPS)}, a colon and a shape, as in v5e:4x4."
    )
  compiler_name, _, smallest = chip.topology.partition(":")
  sizes = [int(n) if n.isdecimal() else 0 for n in shape.split("x")]
  if len(sizes) != smallest.count("x") + 1 or 0 in sizes:
    raise ValueError(
      f"--topology {topology!r} is no shape of {name}, which has"
      f" {smallest.count('x') + 1} numbers, as in {name}:{smallest}."
    )
  if not aot.available():
    return chip, math.prod(sizes) * chip.devices
  try:
    return chip, aot.devices(f"{compiler_name}:{shape}")
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    reason = " ".join(str(error).split())[:120]
    raise ValueError(
      f"--topology {topology!r} is unknown to the compiler; try"
      f" {name}:{smallest} and its multiples. ({reason})"
    ) from error


def _estimate(name, trace, run, available) -> Program:
  start = time.perf_counter()
  flops = costs.flops(trace().jaxpr, unknown_trips=run.trips)
  parts = estimate.temporaries(
    name, run.config, run.shape, run.layout.mesh, stored=run.stored
  )
  temporaries = sum(parts.values())
  needed = run.resident + temporaries
  return Program(
    name=name,
    needed=needed,
    fits=needed <= available,
    arguments=run.resident,
    temporaries=temporaries,
    parts=parts,
    flops=flops,
    seconds=time.perf_counter() - start,
  )


def refused_bytes(message: str) -> float | None:
  """Bytes that a program needs, of the compiler's refusal; None if it is none.

  Args:
    message: of the compiler's error.
  """
  for refusal in _REFUSALS:
    if found := refusal.search(message):
      return float(found[1]) * _UNITS[found[2]]
  return None


def _compile(name, trace, run, available) -> Program:
  start = time.perf_counter()
  traced = trace()
  flops = costs.flops(traced.jaxpr, unknown_trips=run.trips)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    needed = refused_bytes(str(error))
    if needed is None:
      raise
    return Program(
      name=name,
      needed=needed,
      fits=False,
      flops=flops,
      seconds=time.perf_counter() - start,
    )
  size = costs.program_bytes(compiled)
  beside = run.beside(name, size["arguments"])
  return Program(
    name=name,
    needed=size["total"] + beside,
    fits=size["total"] + beside <= available,
    arguments=size["arguments"],
    temporaries=size["temporaries"],
    flops=flops,
    collectives=costs.received(compiled, unknown_trips=run.trips),
    seconds=time.perf_counter() - start,
  )
