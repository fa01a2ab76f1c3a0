"""Bytes that each device receives in a step, for each mesh, as a table.

    python scripts/bench_scale.py
    python scripts/bench_scale.py pod_qwen3_0_6b --topology v5e:4x4 \\
        --mesh "fsdp=16" --mesh "fsdp=4 tensor=4"

Of a step's programs: the weight sync, the rollout (to its longest completion),
the score pass of one micro-batch, the train step. They are compiled, not run:
the bytes are of the results of their collectives, and nothing is said of time.
Without --topology for eight fake CPU devices, with it for TPUs that are not
here (needs libtpu).
"""

import argparse
import dataclasses
import math

DEVICES = 8
MESHES = (
  "data=1 fsdp=1",
  "data=8 fsdp=1",
  "data=1 fsdp=8",
  "data=1 fsdp=1 tensor=8",
  "data=2 fsdp=4",
  "data=1 fsdp=4 tensor=2",
  "data=2 fsdp=1 tensor=4",
  "data=2 fsdp=2 tensor=2",
)
PROGRAMS = ("train step", "weight sync", "rollout", "score pass")
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def received(config, mesh: str, topology: str) -> dict[str, dict | None]:
  """Bytes by kind of collective of each program.

  Args:
    config: an experiment.
    mesh: "data=2 fsdp=4"; what it leaves out is as in experiment.Mesh.
    topology: of absent TPUs; empty: the devices that are here.

  Returns:
    {program: {kind: bytes}}; {} for a program that is not needed, None for
    one that the compiler refused or cannot print.
  """
  from jaxrl_llm.training import experiment, plan

  sizes = {k: int(v) for k, v in (word.split("=") for word in mesh.split())}
  config = dataclasses.replace(config, mesh=experiment.Mesh(**sizes))
  if topology:
    made = plan.make(config, topology, only=PROGRAMS)
  else:
    made = plan.here(config, math.inf, only=PROGRAMS)
  found = {program.name: program.collectives for program in made.programs}
  missing = {} if made.fits else None
  return {name: found.get(name, missing) for name in PROGRAMS}


def table(rows: dict[str, dict[str, dict | None]]) -> str:
  """A line for each mesh; the train step by kind, the others in all."""
  from jaxrl_llm.distributed import costs

  others = [name for name in PROGRAMS if name != "train step"]
  steps = [row["train step"] or {} for row in rows.values()]
  kinds = [kind for kind in costs.KINDS if any(kind in step for step in steps)]
  titles = ["mesh", *others, "train step", *(f"its {kind}" for kind in kinds)]
  lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
  for mesh, row in rows.items():
    step = row["train step"]
    cells = [_total(row[name]) for name in others] + [_total(step)]
    cells += [size((step or {}).get(kind, 0)) for kind in kinds]
    lines.append(f"| {mesh} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _total(kinds: dict | None) -> str:
  return "not known" if kinds is None else size(sum(kinds.values()))


def size(count: float) -> str:
  """Three digits: "1.27 GiB"; "0" for nothing."""
  for unit, name in _UNITS:
    if count >= unit:
      return f"{count / unit:.3g} {name}"
  return "0"


def main() -> None:
  """Compiles and prints, a mesh at a time."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("config", nargs="?", default="tiny_addition")
  parser.add_argument("--topology", default="")
  parser.add_argument("--mesh", action="append")
  parser.add_argument("--prompts-per-step", type=int, default=0)
  args = parser.parse_args()

  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  from jaxrl_llm.training import config_file

  config = config_file.load(args.config)
  if not args.topology:  # one prompt for each device at least
    config = dataclasses.replace(config, prompts_per_step=DEVICES)
  if args.prompts_per_step:
    config = dataclasses.replace(config, prompts_per_step=args.prompts_per_step)
  rows = {}
  for mesh in args.mesh or MESHES:
    rows[mesh] = received(config, mesh, args.topology)
    print(f"compiled {mesh}", flush=True)
  print(f"\n{table(rows)}")


if __name__ == "__main__":
  main()
