"""A plan as text for a terminal and as a page with bars."""

from collections.abc import Sequence
import html
import os
import pathlib
from typing import Any

from jaxrl_llm.training import plan as plans
from jaxrl_llm.training import plots, report

_GIB = 2.0**30


def text(plan: plans.Plan) -> str:
  """Lines for a terminal; the last says whether it fits."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
  lines = [
    f"{plan.topology}: {mesh}; {plan.parameters / 1e9:.2f} billion parameters,"
    f"{_trained(plan)}"
    f" remat {plan.remat}, {plan.micro_batches} micro-batches",
    f"on each device, GiB of {plan.available / _GIB:.2f}; state and reference"
    f" hold {plan.resident / _GIB:.2f} all the time",
    "",
    f"{'program':<12}{'needs':>9}{'arguments':>11}{'temporary':>11}"
    f"{'TFLOP':>10}  {'received by collectives'}",
  ]
  lines += [_line(program) for program in plan.programs]
  lines += _how(plan)
  return "\n".join([*lines, "", verdict(plan)])


def _how(plan: plans.Plan) -> list[str]:
  """Where the figures come from, if not from a compiler."""
  if not plan.programs:
    return ["(state and reference alone do not fit: nothing was compiled)"]
  if not plan.estimated:
    return []
  lines = [
    "",
    "An ESTIMATE by arithmetic (jaxrl_llm/training/estimate.py): libtpu is not",
    "installed, nothing was compiled. State and reference are exact; temporary"
    " is, in GiB,",
  ]
  for program in plan.programs:
    parts = (f"{k} {v / _GIB:.2f}" for k, v in program.parts.items())
    lines.append(f"  {program.name:<12}{' + '.join(parts)}")
  return lines


def _trained(plan):
  """Said of an adapter only."""
  if plan.trained == plan.parameters:
    return ""
  return f" an adapter of {plan.trained / 1e6:.1f} million,"


def verdict(plan: plans.Plan) -> str:
  """One line: yes or no, needed and available."""
  about = "about " if plan.estimated and plan.programs else ""
  return (
    f"fits: {'yes' if plan.fits else 'no'} (needs {about}"
    f"{plan.needed / _GIB:.2f} GiB of {plan.available / _GIB:.2f} GiB on each"
    " device)"
  )


def searched(tried: Sequence[plans.Plan]) -> str:
  """A line for each pair of remat policy and micro-batches that was tried."""
  lines = [f"{'remat':<8}{'micro-batches':>14}{'needs GiB':>11}  fits"]
  lines += [
    f"{plan.remat:<8}{plan.micro_batches:>14}{plan.needed / _GIB:>11.2f}"
    f"  {'yes' if plan.fits else 'no'}"
    for plan in tried
  ]
  return "\n".join(lines)


def _line(program: plans.Program) -> str:
  def gib(value):
    return f"{value / _GIB:>11.2f}" if value is not None else f"{'':>11}"

  return (
    f"{program.name:<12}{program.needed / _GIB:>9.2f}"
    f"{gib(program.arguments)}{gib(program.temporaries)}"
    f"{program.flops / 1e12:>10.1f}  {_collectives(program)}"
  )


def _collectives(program: plans.Program) -> str:
  if program.collectives is None:
    return "" if program.fits or program.parts else "(refused by the compiler)"
  return ", ".join(
    f"{kind} {size / _GIB:.2f}" for kind, size in program.collectives.items()
  )


def write(plan: plans.Plan, path: str | os.PathLike, *, name: str) -> None:
  """Writes the page to a file; arguments as page()."""
  text = page(plan, name=name)
  pathlib.Path(path).expanduser().write_text(text, encoding="utf-8")


def page(plan: plans.Plan, *, name: str) -> str:
  """The plan as a self-contained page.

  Args:
    plan: from plan.make.
    name: of the experiment.
  """
  bars = plots.picture(
    lambda axes: _bars(axes, plan), (8.6, 3.2), "svg", whole_numbers=False
  ).decode()
  title = html.escape(f"{name} on {plan.topology}")
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{report.STYLE}</style></head><body>
<h1>{title}</h1>
<p class="sub">{html.escape(verdict(plan))}</p>
<div class="wide">{bars}</div>
<p class="note">Memory of one device while each program runs, as
{"arithmetic estimates" if plan.estimated else "the TPU's compiler states"}
it. Other: what stays there meanwhile and is no argument of the
program, and results that replace nothing.</p>
<pre>{html.escape(text(plan))}</pre>
</body></html>
"""


def _bars(axes: Any, plan: plans.Plan) -> None:
  programs = list(reversed(plan.programs))
  names = [program.name for program in programs]
  left = [0.0] * len(programs)
  parts = (
    ("arguments", [p.arguments or 0.0 for p in programs]),
    ("temporaries", [p.temporaries or 0.0 for p in programs]),
  )
  rest = [
    p.needed - (p.arguments or 0.0) - (p.temporaries or 0.0) for p in programs
  ]
  for (label, sizes), color in zip(
    (*parts, ("other", rest)), plots.COLORS, strict=False
  ):
    widths = [size / _GIB for size in sizes]
    axes.barh(names, widths, left=left, color=color, label=label, height=0.6)
    left = [a + b for a, b in zip(left, widths, strict=True)]
  axes.axvline(plan.available / _GIB, color="#a40e26", lw=1.5)
  axes.set_xlabel("GiB on each device; the line is what it has")
  axes.legend(loc="lower right", frameon=False, fontsize=9)
