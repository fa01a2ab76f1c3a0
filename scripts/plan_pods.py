"""Plans every configs/pod_*.py and writes the figures into docs/pods.md.

    python scripts/plan_pods.py               # all rows, an hour or more
    python scripts/plan_pods.py --only pod_qwen3_8b v5e:8x8
    python scripts/plan_pods.py --again       # also what was measured before
    python scripts/plan_pods.py --estimate    # arithmetic for what is missing
    python scripts/plan_pods.py --write       # the tables alone, no compiler

A program is kept in docs/pods.json as soon as it is compiled, with its commit,
under the command that repeats its row. Needs libtpu, no TPU.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
import pathlib
import subprocess
import sys

from pallas_kernels import aot

ROOT = pathlib.Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "pods.json"
PAGE = ROOT / "docs" / "pods.md"
PROGRAMS = ("train step", "rollout", "score pass")
_GIB = 2.0**30

FIT = (
  ("pod_qwen3_0_6b", "v5e:2x4"),
  ("pod_qwen3_1_7b", "v5e:4x4"),
  ("pod_qwen3_4b", "v5e:4x8"),
  ("pod_gemma3_4b", "v5e:4x8"),
  ("pod_qwen3_8b", "v5e:8x8"),
  ("pod_llama3_1_8b", "v5e:8x8"),
  ("pod_qwen3_32b", "v5e:16x16", 0, 2),  # 32 shares take 32 prompts a piece
  ("pod_qwen3_0_6b", "v5p:2x2x1"),
  ("pod_qwen3_1_7b", "v5p:2x2x1"),
  ("pod_qwen3_4b", "v5p:2x2x2"),
  ("pod_gemma3_4b", "v5p:2x2x2"),
  ("pod_qwen3_8b", "v5p:2x2x4"),
  ("pod_llama3_1_8b", "v5p:2x2x4"),
  ("pod_qwen3_32b", "v5p:4x4x4"),
  ("pod_qwen3_0_6b", "v6e:2x4"),
  ("pod_qwen3_1_7b", "v6e:2x4"),
  ("pod_qwen3_4b", "v6e:4x4"),
  ("pod_gemma3_4b", "v6e:4x4"),
  ("pod_qwen3_8b", "v6e:4x8"),
  ("pod_llama3_1_8b", "v6e:4x8"),
  ("pod_qwen3_32b", "v6e:8x8"),
)
# Topology, prompts_per_step and mesh.data: the batch grows with the chips, and
# a device holds as much as before.
GROWN = (("v5e:8x8", 64, 1), ("v5e:8x16", 128, 2), ("v5e:16x16", 256, 4))


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  Attributes:
    config: a name in configs/.
    topology: as `jaxrl plan` takes it.
    prompts: prompts_per_step; 0 leaves the config's.
    micro_batches: 0 leaves the config's.
    data: mesh.data; 0 leaves the config's.
  """

  config: str
  topology: str
  prompts: int = 0
  micro_batches: int = 0
  data: int = 0

  @property
  def command(self) -> str:
    """What a person types for the same figures."""
    more = f" --prompts-per-step {self.prompts}" if self.prompts else ""
    if self.micro_batches:
      more += f" --micro-batches {self.micro_batches}"
    if self.data:
      more += f" --mesh.data {self.data}"
    return f"jaxrl plan {self.config} --topology {self.topology}{more}"


def grown() -> list[Row]:
  """Those of Qwen3-8B on more and more chips; the first is one of FIT."""
  return [Row("pod_qwen3_8b", GROWN[0][0])] + [
    Row("pod_qwen3_8b", topology, prompts, data=data)
    for topology, prompts, data in GROWN[1:]
  ]


def rows() -> list[Row]:
  """All of them, each once."""
  return [Row(*row) for row in FIT] + grown()[1:]


def measure(row: Row, known: dict, commit: str) -> Iterator[dict]:
  """The plan of one row after each program that is compiled for it.

  Args:
    row: which.
    known: the plan so far: its programs are not compiled again, but what was
      estimated is; {} for none.
    commit: of this checkout.
  """
  from jaxrl_llm.training import config_file, plan, plan_report

  config = config_file.load(row.config)
  if row.prompts:
    config = dataclasses.replace(config, prompts_per_step=row.prompts)
  if row.micro_batches:
    config = dataclasses.replace(config, micro_batches=row.micro_batches)
  if row.data:
    mesh = dataclasses.replace(config.mesh, data=row.data)
    config = dataclasses.replace(config, mesh=mesh)
  compiled = known if not known.get("estimated") else {}
  programs = list(compiled.get("programs", ()))
  for name in PROGRAMS:
    if name in [program["name"] for program in programs]:
      continue
    made = plan.make(config, row.topology, only=(name,), say=print)
    print(plan_report.text(made), flush=True)
    as_dict = dataclasses.asdict(made)
    programs += [p | {"commit": commit} for p in as_dict["programs"]]
    yield as_dict | {"programs": programs}


def page_with(page: str, tables: dict[str, str]) -> str:
  """The page with each table between its two marks."""
  for name, table in tables.items():
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(start)
    after = rest.partition(end)[2]
    if not after:
      raise ValueError(f"{PAGE} has no pair of marks {start.strip()!r}.")
    page = f"{before}{start}{table}\n{end}{after}"
  return page


def fit_table(figures: dict[str, dict]) -> str:
  """A row for each program of each plan."""
  lines = [
    "| plan | mesh | program | arguments | temporaries | needs | of |"
    " TFLOP | received, GiB | compiled in |",
    "|" + "---|" * 10,
  ]
  for row in rows():
    plan = figures.get(row.command)
    for i, program in enumerate(plan["programs"] if plan else ()):
      name = f"`{row.command.removeprefix('jaxrl plan ')}`" if not i else ""
      mesh = "" if i else _mesh(plan["mesh"])
      lines.append(f"| {name} | {mesh} | {_cells(program, plan)} |")
  return "\n".join(lines)


def grown_table(figures: dict[str, dict]) -> str:
  """Bytes of one device as chips and batch grow together."""
  lines = [
    "| topology | prompts a step | mesh | train step | rollout | score pass |",
    "|---|---|---|---|---|---|",
  ]
  for row, (topology, prompts, _) in zip(grown(), GROWN, strict=True):
    plan = figures.get(row.command)
    if plan is None or plan["estimated"]:
      continue
    needs = " | ".join(_gib(p["needed"]) for p in plan["programs"])
    lines.append(
      f"| {topology} | {prompts} | {_mesh(plan['mesh'])} | {needs} |"
    )
  return "\n".join(lines)


def _mesh(mesh):
  return " x ".join(f"{k} {v}" for k, v in mesh.items() if v > 1)


def _cells(program, plan):
  moved = program["collectives"]
  received = "" if moved is None else _gib(sum(moved.values()))
  seconds = f"{program['seconds']:.0f} s"
  return " | ".join(
    [
      program["name"],
      _gib(program["arguments"]),
      _gib(program["temporaries"]),
      _gib(program["needed"]),
      _gib(plan["available"]),
      f"{program['flops'] / 1e12:,.0f}",
      received,
      "estimate" if plan["estimated"] else seconds,
    ]
  )


def _gib(size):
  return "" if size is None else f"{size / _GIB:.2f}"


def main() -> int:
  """Measures what is missing and writes the page; 1 if a row does not fit."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs=2, metavar=("CONFIG", "TOPOLOGY"))
  parser.add_argument("--again", action="store_true", help="known ones too")
  parser.add_argument("--estimate", action="store_true", help="no compiling")
  parser.add_argument("--write", action="store_true", help="no compiling")
  args = parser.parse_args()
  git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
  commit = subprocess.check_output(git, text=True).strip()
  if args.estimate:
    aot.available = lambda: False
  figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
  wanted = [] if args.write else rows()
  if args.only:
    wanted = [r for r in rows() if [r.config, r.topology] == args.only]
    if not wanted:
      parser.error(f"no row {' '.join(args.only)}; see FIT and GROWN.")
  for row in wanted:
    known = {} if args.again else figures.get(row.command, {})
    if args.estimate and known:
      continue
    print(f"\n{row.command}", flush=True)
    for made in measure(row, known, commit):
      figures[row.command] = made
      FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
  tables = {"plans": fit_table(figures), "grown": grown_table(figures)}
  PAGE.write_text(page_with(PAGE.read_text(), tables))
  too_large = [
    command
    for command, plan in figures.items()
    if not all(program["fits"] for program in plan["programs"])
  ]
  for command in too_large:
    print(f"does not fit: {command}", file=sys.stderr)
  return int(bool(too_large))


if __name__ == "__main__":
  sys.exit(main())
