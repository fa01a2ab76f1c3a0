"""Runs commands in turn, round after round, and compares their step times.

Each command prints either one JSON line with "seconds_per_step" or a line
"... seconds/step median X ...". The first is the yardstick.

    python scripts/bench_side_by_side.py --rounds 3 \
        --run "ours=python scripts/bench_step.py --vocab 4096" \
        --run "peer=/path/to/python peer.py --vocab 4096"
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys


def measure(command: str) -> dict[str, float]:
  """Median and best seconds a step, first step, and memory, of one run.

  Raises:
    RuntimeError: the command failed or printed no figure.
  """
  done = subprocess.run(shlex.split(command), capture_output=True, text=True)
  for line in reversed(done.stdout.splitlines()):
    if line.startswith("{") and "seconds_per_step" in line:
      data = json.loads(line)
      return {
        "median": data["seconds_per_step"],
        "best": data["best"]["seconds_per_step"],
        "first": data["first_step_s"],
        "mib": data["peak_rss_mib"],
      }
    found = re.search(r"seconds/step median ([\d.]+)", line)
    if found:
      return {"median": float(found[1])}
  tail = done.stderr.strip().splitlines()[-1:] or ["nothing"]
  raise RuntimeError(f"{command!r} printed no step time; stderr: {tail[0]}")


def main() -> None:
  """Prints a line a run and a table of the whole."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--run", action="append", required=True)
  args = parser.parse_args()
  commands = dict(item.split("=", 1) for item in args.run)
  seen = {name: [] for name in commands}
  for index in range(args.rounds):
    for name, command in commands.items():
      seen[name].append(measure(command))
      print(index, name, seen[name][-1], file=sys.stderr, flush=True)
  base = next(iter(seen))
  print("| system | median s | best s | first step s | peak MiB | ratio |")
  print("| --- | --- | --- | --- | --- | --- |")
  for name, rows in seen.items():
    cells = [_middle(rows, "median"), _least(rows, "best")]
    cells += [_middle(rows, "first"), _middle(rows, "mib")]
    ratio = _middle(rows, "median") / _middle(seen[base], "median")
    shown = " | ".join("" if c is None else f"{c:.3f}" for c in cells)
    print(f"| {name} | {shown} | {ratio:.2f} |")


def _middle(rows, key):
  values = [row[key] for row in rows if key in row]
  return statistics.median(values) if values else None


def _least(rows, key):
  values = [row.get(key, row["median"]) for row in rows]
  return min(values)


if __name__ == "__main__":
  main()
