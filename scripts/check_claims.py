"""Checks, for each published method, what its paper claims, at a small size.

    python scripts/check_claims.py [--methods bnpo,ngrpo] [--seeds 5]
        [--out runs/claims]

One file a method in scripts/claims: real runs of a tiny model, or real arrays,
several seeds, 95 % intervals. Writes OUT/claims.md, OUT/claims.json and
OUT/report.html with the curves. The exit code is 1 if a check could not run; a
claim that does not show is a finding and no failure.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import html
import importlib.util
import json
import pathlib
import sys
import time

import claims_frame as frame
import compare_report
import numpy as np

from jaxrl_llm.training import plots
from jaxrl_llm.training import report as pages

FOLDER = pathlib.Path(__file__).parent / "claims"
VERDICTS = {True: "shows", False: "does not show", None: "not decided"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """A claim and what came of it.

  Attributes:
    name: of the method.
    claim: one sentence.
    finding: what was seen.
    seconds: that it took.
  """

  name: str
  claim: str
  finding: frame.Finding
  seconds: float


def names() -> list[str]:
  """The methods whose claims can be checked."""
  return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def check(name: str, seeds: int) -> Checked:
  """Runs the file of one method."""
  spec = importlib.util.spec_from_file_location(
    f"claim_{name}", FOLDER / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  start = time.perf_counter()
  finding = module.check(seeds)
  return Checked(
    name=name,
    claim=module.CLAIM,
    finding=finding,
    seconds=time.perf_counter() - start,
  )


def main(args: Sequence[str] | None = None) -> int:
  """Checks; returns the exit code."""
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--methods", default="", help="by commas; all by default")
  p.add_argument("--seeds", type=int, default=5)
  p.add_argument("--out", type=pathlib.Path, default="runs/claims")
  options = p.parse_args(args)
  if options.seeds < 2:
    p.error(f"--seeds must be at least 2, for an interval; got {options.seeds}")
  wanted = [name for name in options.methods.split(",") if name] or names()
  for name in wanted:
    if name not in names():
      p.error(f"--methods may name {', '.join(names())}; got {name!r}")
  found, failures = [], {}
  for index, name in enumerate(wanted):
    head = f"[{index + 1:>2}/{len(wanted)}] {name:<14}"
    print(f"{head} ...", end="", flush=True)
    try:
      found.append(check(name, options.seeds))
    except Exception as error:  # one broken check must not hide the others
      failures[name] = f"{type(error).__name__}: {error}"
      print(f"\r{head} failed: {failures[name]}", flush=True)
      continue
    last = found[-1]
    verdict = VERDICTS[last.finding.shows]
    print(f"\r{head} {verdict:<14} {last.seconds:5.1f} s  {last.finding.text}")
    write(options.out, found, failures, options.seeds)
  return 1 if failures else 0


def write(
  folder: pathlib.Path,
  found: Sequence[Checked],
  failures: Mapping[str, str],
  seeds: int,
) -> None:
  """claims.md, claims.json and report.html."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "claims.md").write_text(markdown(found), encoding="utf-8")
  plain = {one.name: _plain(one) for one in found}
  (folder / "claims.json").write_text(
    json.dumps({"seeds": seeds, "found": plain, "failures": dict(failures)})
  )
  page = _page(found, failures, seeds)
  (folder / "report.html").write_text(page, encoding="utf-8")


def markdown(found: Sequence[Checked]) -> str:
  """A table, and below it the numbers of each method."""
  lines = ["| method | claim | | what was seen |", "|---|---|---|---|"]
  lines += [
    f"| `{one.name}` | {one.claim} | {VERDICTS[one.finding.shows]} |"
    f" {one.finding.text.replace('|', chr(92) + '|')} |"
    for one in found
  ]
  for one in found:
    if one.finding.rows:
      lines += ["", f"`{one.name}`", "", *_table(one.finding.rows)]
  return "\n".join(lines) + "\n"


def _table(rows) -> list[str]:
  heads = list(rows[0])
  lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
  return lines + [
    f"| {' | '.join(_cell(row[head]) for head in heads)} |" for row in rows
  ]


def _cell(value) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(one: Checked) -> dict:
  finding = dataclasses.asdict(one.finding)
  curves = {k: np.asarray(v).tolist() for k, v in one.finding.curves.items()}
  rows = [{k: _cell(v) for k, v in row.items()} for row in one.finding.rows]
  return (
    {"claim": one.claim, "seconds": one.seconds}
    | finding
    | {
      "curves": curves,
      "rows": rows,
    }
  )


def _page(found, failures, seeds) -> str:
  failed = "".join(
    f"<p class='wrong'>{html.escape(f'{name}: {why}')}</p>"
    for name, why in failures.items()
  )
  parts = "\n".join(_part(one) for one in found)
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Claims checked</title><style>{pages.STYLE}</style></head><body>
<h1>Claims checked</h1>
<p class="sub">{seeds} seeds, 95 % intervals of the mean over seeds</p>
{failed}
{parts}
</body></html>
"""


def _part(one: Checked) -> str:
  kind = {True: "right", False: "wrong", None: ""}[one.finding.shows]
  table = ""
  if one.finding.rows:
    heads = "".join(f"<th>{html.escape(h)}</th>" for h in one.finding.rows[0])
    body = "".join(
      "<tr>"
      + "".join(f"<td>{html.escape(_cell(v))}</td>" for v in row.values())
      + "</tr>"
      for row in one.finding.rows
    )
    table = f"<table><tr>{heads}</tr>{body}</table>"
  plot = _plot(one.finding).decode() if one.finding.curves else ""
  return f"""<h2>{html.escape(one.name)}: <span class="{kind}">
{VERDICTS[one.finding.shows]}</span></h2>
<p>{html.escape(one.claim)}</p>
<p class="note">{html.escape(one.finding.text)}</p>
{table}
<div>{plot}</div>"""


def _plot(finding: frame.Finding) -> bytes:
  """Curves with the 95 % interval of the mean over seeds."""

  def draw(axes):
    for index, (label, values) in enumerate(finding.curves.items()):
      color = plots.COLORS[index % len(plots.COLORS)]
      mean, half = compare_report.interval(np.asarray(values, np.float64))
      steps = np.arange(1, len(mean) + 1)
      axes.plot(steps, mean, color=color, lw=1.7, label=label)
      axes.fill_between(
        steps, mean - half, mean + half, color=color, alpha=0.15, lw=0
      )
    axes.set_xlabel(finding.axes[0])
    axes.legend(frameon=False, fontsize=8)
    plots.title_of(axes, "", finding.axes[1])

  return plots.picture(draw, (6.0, 2.8), "svg")


if __name__ == "__main__":
  sys.exit(main())
