"""Prints what a run reached, before and after, as a short table.

    python scripts/show_run.py [--name demo_addition] [--runs runs]

Other options are let through, so it can be given those of `jaxrl train`.
"""

import argparse
import json
import pathlib
import statistics
import sys

import rich.console
import rich.table

# title, key in metrics.jsonl, how it is written
_STEPS = (
  ("reward in training", "reward", "{:.3f}"),
  ("entropy, nats a token", "entropy", "{:.3f}"),
  ("length, tokens", "length", "{:.1f}"),
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
  tests = read(folder / "evaluations.jsonl")
  steps = read(folder / "metrics.jsonl")
  rows = rich.table.Table(title=f"{folder}, {len(steps)} steps")
  for name in ("", "before", "after", "change"):
    rows.add_column(name, justify="right" if name else "left")
  first, last = tests[0], tests[-1]
  title = f"accuracy on {last['problems']:.0f} held-out problems"
  _add(rows, title, "{:.3f}", first["accuracy"], last["accuracy"])
  rows.add_row("  95 % interval", _interval(first), _interval(last))
  window = max(1, min(_WINDOW, len(steps) // 2))
  for title, key, form in _STEPS:
    values = [step[key] for step in steps if step.get(key) is not None]
    if values:
      before, after = values[:window], values[-window:]
      _add(rows, title, form, statistics.mean(before), statistics.mean(after))
  seconds = statistics.median(step["time/step"] for step in steps)
  rows.caption = (
    f"training: means of the first and last {window}; median step"
    f" {seconds:.1f} s"
  )
  return rows


def _interval(test: dict) -> str:
  return f"{test['accuracy_low']:.2f} to {test['accuracy_high']:.2f}"


def _add(rows, title: str, form: str, before, after) -> None:
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
  for name, what in (
    ("report.html", "curves and completions, one page for a browser"),
    ("export", "the trained model, a folder that transformers loads"),
  ):
    if (folder / name).exists():
      print(f"{folder / name}: {what}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
