"""Prints what a run reached, before and after, as a short table.

    python scripts/show_run.py [--name demo_addition] [--runs runs]

Other options are let through, so it can be given those of `jaxrl train`.
"""

import argparse
import json
import pathlib
import sys

import rich.console
import rich.table

# title, key in evaluations.jsonl, how it is written
_EVALUATION = (
  ("accuracy, held out", "accuracy", "{:.3f}"),
  ("  95 % interval, from", "accuracy_low", "{:.3f}"),
  ("  to", "accuracy_high", "{:.3f}"),
)
# title, key in metrics.jsonl, how it is written; means of _WINDOW steps
_STEPS = (
  ("reward in training", "reward", "{:.3f}"),
  ("entropy, nats a token", "entropy", "{:.3f}"),
  ("length, tokens", "length", "{:.1f}"),
  ("seconds a step", "time/step", "{:.1f}"),
)
_WINDOW = 5


def read(path: pathlib.Path) -> list[dict]:
  """The objects of a file of JSON lines.

  Raises:
    FileNotFoundError: there is no such file, or nothing in it.
  """
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  if not lines:
    raise FileNotFoundError(f"there is no finished run in {path.parent}.")
  return [json.loads(line) for line in lines]


def table(folder: pathlib.Path) -> rich.table.Table:
  """What changed between the first and the last lines of a run's files."""
  rows = rich.table.Table(title=str(folder), title_justify="left")
  for name in ("", "before", "after", "change"):
    rows.add_column(name, justify="right" if name else "left")
  tests = read(folder / "evaluations.jsonl")
  for title, key, form in _EVALUATION:
    _add(rows, title, form, tests[0].get(key), tests[-1].get(key))
  steps = read(folder / "metrics.jsonl")
  for title, key, form in _STEPS:
    values = [step[key] for step in steps if step.get(key) is not None]
    if values:
      first, last = values[:_WINDOW], values[-_WINDOW:]
      _add(rows, title, form, sum(first) / len(first), sum(last) / len(last))
  return rows


def _add(rows, title: str, form: str, before, after) -> None:
  if before is not None and after is not None:
    change = form.replace(":", ":+").format(after - before)
    rows.add_row(title, form.format(before), form.format(after), change)


def main() -> int:
  """Prints the table of the run that the arguments name."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0], allow_abbrev=False
  )
  parser.add_argument("--name", default="demo_addition")
  parser.add_argument("--runs", default="runs")
  options, _ = parser.parse_known_args()
  folder = pathlib.Path(options.runs).expanduser() / options.name
  console = rich.console.Console()
  try:
    console.print(table(folder))
  except FileNotFoundError as error:
    print(f"show_run: {error}", file=sys.stderr)
    return 2
  problems = read(folder / "evaluations.jsonl")[-1].get("problems", 0)
  print(
    f"{problems:.0f} held-out problems; rewards and times are means of the"
    f" first and last {_WINDOW} steps."
  )
  for name, what in (
    ("report.html", "curves and completions, one page for a browser"),
    ("export", "the trained model, a folder that transformers loads"),
  ):
    if (folder / name).exists():
      print(f"{folder / name}: {what}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
