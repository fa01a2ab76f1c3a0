"""Trains a tiny model on two generated tasks with every method, and compares.

    python scripts/compare_methods.py [--methods grpo,dapo] [--seeds 3]
        [--steps 40] [--out runs/compare_methods]

A learning check, no unit test: dense and sparse reward (compare_tasks.py), all
seeds side by side (compare_runs.py), the same setting for every method with its
own defaults. Writes OUT/report.html, which needs nothing else, and
OUT/results.json. The exit code is 1 if a method could not run or does not beat
the untrained policy on the dense task (on the sparse one if it reads rewards as
right or wrong), and a line says which.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys
import time

import compare_report as report
import compare_runs as runs

from jaxrl_llm import methods
from jaxrl_llm.methods import base

# The task that a method must learn. On the other one rewards are shares, and
# these read a reward as right or wrong: to them no first answer is right.
_RIGHT_OR_WRONG = {"drpo", "hdpo"}


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
  """The arguments."""
  setting = runs.Setting()
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--methods", default="", help="by commas; all by default")
  p.add_argument("--seeds", type=int, default=setting.seeds)
  p.add_argument("--steps", type=int, default=setting.steps)
  p.add_argument("--out", type=pathlib.Path, default="runs/compare_methods")
  parsed = p.parse_args(args)
  for name in ("seeds", "steps"):
    if getattr(parsed, name) < 1:
      p.error(f"--{name} must be at least 1, got {getattr(parsed, name)}.")
  names = [name.strip() for name in parsed.methods.split(",") if name.strip()]
  try:
    for name in names:
      methods.get(name)
  except ValueError as error:
    p.error(str(error))
  if taught := [name for name in names if _is_supervised(name)]:
    p.error(f"{taught[0]} learns from answers, not from samples: jaxrl sft")
  if evolved := [name for name in names if _is_evolution(name)]:
    p.error(
      f"{evolved[0]} takes no train step: scripts/check_claims.py --methods"
      f" {evolved[0]} compares it with one"
    )
  parsed.methods = names or [
    name for name in methods.BY_GRADIENT if not _is_supervised(name)
  ]
  return parsed


def _is_evolution(name: str) -> bool:
  return issubclass(methods.get(name), base.EvolutionConfig)


def _is_supervised(name: str) -> bool:
  try:
    return methods.get(name)().build().supervised
  except ValueError:  # said when it is to run
    return False


def main(args: Sequence[str] | None = None) -> int:
  """Compares; returns the exit code."""
  options = parse(args)
  setting = runs.Setting(seeds=options.seeds, steps=options.steps)
  start = time.perf_counter()
  results, failures = compare(setting, options.methods)
  minutes = (time.perf_counter() - start) / 60
  about = (
    f"{len(results)} methods, {setting.seeds} seeds, {setting.steps} steps of"
    f" {setting.prompts} prompts x {setting.group_size} completions and"
    f" {setting.mini_batches * setting.epochs} updates each, Adam at"
    f" {setting.learning_rate:g}; {minutes:.1f} minutes"
  )
  write(options.out, results, failures, about)
  losers = [r.name for r in results if not _learnt(r)]
  for name, why in failures.items():
    print(f"could not run {name}: {why}", file=sys.stderr)
  if losers:
    print(
      f"not better than the untrained policy on its task: {', '.join(losers)}",
      file=sys.stderr,
    )
  else:
    print(f"{len(results)} methods beat the untrained policy on their task")
  print(f"{minutes:.1f} minutes; {options.out / 'report.html'}")
  return 1 if losers or failures else 0


def compare(
  setting: runs.Setting, names: Sequence[str]
) -> tuple[list[report.Result], dict[str, str]]:
  """Results of the methods that ran, and why the others did not.

  While one method trains, the step of the next is compiled.
  """
  arena = runs.Arena(setting)
  results, failures = [], {}
  coming = _prepare(arena, names[0])
  _ = arena.untrained  # compiles the sampler meanwhile
  for index, name in enumerate(names):
    prepared = coming
    if index + 1 < len(names):
      coming = _prepare(arena, names[index + 1])
    head = f"[{index + 1:>2}/{len(names)}] {name:<22}"
    try:
      result = arena.train(_ready(prepared), say=_progress(head, setting.steps))
    except Exception as error:  # one broken method must not hide the others
      failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[
        :300
      ]
      print(f"\r{head} failed: {failures[name]}", flush=True)
      continue
    results.append(result)
    print(f"\r{head} {_line(result)}", flush=True)
  return results, failures


def write(
  folder: pathlib.Path,
  results: Sequence[report.Result],
  failures: dict[str, str],
  about: str,
) -> None:
  """report.html and results.json."""
  folder.mkdir(parents=True, exist_ok=True)
  page = report.render(results, failures, about)
  (folder / "report.html").write_text(page, encoding="utf-8")
  plain = {"about": about, "failures": failures}
  plain["results"] = [result.plain() for result in results]
  (folder / "results.json").write_text(json.dumps(plain) + "\n")


def _prepare(arena: runs.Arena, name: str):
  """The method with its step in compilation, or what went wrong."""
  try:
    return runs.Prepared(arena, name)
  except Exception as error:  # told when it is this method's turn
    return error


def _ready(prepared):
  if isinstance(prepared, Exception):
    raise prepared
  return prepared


def _progress(head: str, steps: int):
  """Shows each step on a terminal, nothing in a file."""

  def say(step):
    if sys.stdout.isatty():
      print(f"\r{head} step {step}/{steps}", end="", flush=True)

  return say


def _learnt(result: report.Result) -> bool:
  return result.beats_untrained(
    "sparse" if result.name in _RIGHT_OR_WRONG else "dense"
  )


def _line(result: report.Result) -> str:
  before, after = result.before.mean(axis=1), result.after.mean(axis=1)
  tasks = "  ".join(
    f"{task} {before[i]:.3f} -> {after[i]:.3f}"
    for i, task in enumerate(report.TASKS)
  )
  verdict = "" if _learnt(result) else "  NOT BETTER"
  return (
    f"{tasks}  compile {result.compile_seconds:4.1f} s"
    f"  steps {result.seconds:4.1f} s{verdict}"
  )


if __name__ == "__main__":
  sys.exit(main())
