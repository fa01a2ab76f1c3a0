"""What came of a comparison: a table, and curves with bands, on one page."""

from collections.abc import Mapping, Sequence
import dataclasses
import html

from compare_tasks import TASKS
import numpy as np
from scipy import stats

from jaxrl_llm.methods import describe
from jaxrl_llm.training import plots
from jaxrl_llm.training import report as pages

_COLORS = dict(zip(TASKS, plots.COLORS, strict=False))
_BASE = "grpo"  # drawn behind every other method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """One method on both tasks.

  Attributes:
    name: key of METHODS.
    rewards: [tasks, seeds, steps] mean reward of each step's samples.
    before: [tasks, seeds] mean reward of the untrained policy.
    after: [tasks, seeds] of the trained one.
    error: [tasks, seeds] standard error of after - before, from its samples.
    compile_seconds: of the train step, waiting for a core included.
    seconds: of all steps, without compiling.
    metrics: means over a method's runs and steps, of a few metrics.
  """

  name: str
  rewards: np.ndarray
  before: np.ndarray
  after: np.ndarray
  error: np.ndarray
  compile_seconds: float
  seconds: float
  metrics: Mapping[str, float]

  def beats_untrained(self, task: str = "dense") -> bool:
    """In every seed, by more than 4 standard errors; never with a NaN."""
    index = TASKS.index(task)
    gain = self.after[index] - self.before[index]
    return bool((gain > 4.0 * self.error[index]).all())

  def plain(self) -> dict:
    """As json can write it."""
    return {
      key: value.tolist() if isinstance(value, np.ndarray) else value
      for key, value in dataclasses.asdict(self).items()
    }


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean over axis 0, and the half width of its 95 % interval (Student's t).

  Args:
    values: [seeds, ...]; one seed has no interval: NaN.
  """
  count = len(values)
  mean = values.mean(axis=0)
  if count < 2:
    return mean, np.full_like(mean, np.nan)
  quantile = stats.t.ppf(0.975, count - 1)
  return mean, quantile * values.std(axis=0, ddof=1) / count**0.5


def render(
  results: Sequence[Result], failures: Mapping[str, str], about: str
) -> str:
  """The page as text.

  Args:
    results: of the methods that ran.
    failures: why the others did not.
    about: what was run, one line.
  """
  base = next((r for r in results if r.name == _BASE), None)
  curves = "\n".join(
    f"<div>{_panel(result, base).decode()}</div>" for result in results
  )
  failed = "".join(
    f"<p class='wrong'>{html.escape(f'{name}: {why}')}</p>"
    for name, why in failures.items()
  )
  overview = _overview(results).decode() if results else ""
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Methods compared</title><style>{pages.STYLE}
td.number {{ text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }}
body {{ max-width: 1180px; }}</style></head><body>
<h1>Methods compared</h1>
<p class="sub">{html.escape(about)}</p>
{failed}
<h2>Mean reward while training</h2>
<p class="note">Over all steps, so that learning fast counts; bars: 95 %
interval of the mean over seeds.</p>
<div class="wide">{overview}</div>
<h2>Numbers</h2>
<p class="note">Before and after: mean reward of fresh samples, mean over seeds
with its 95 % interval. A method beats the untrained policy if it does in every
seed, by more than 4 standard errors of the samples.</p>
{_table(results)}
<h2>Curves</h2>
<p class="note">Mean reward of each step's samples, running mean, with the 95 %
interval of the mean over seeds; dotted: {_BASE}.</p>
<div class="plots">{curves}</div>
</body></html>
"""


def _table(results: Sequence[Result]) -> str:
  heads = ["method", "changes against GRPO"]
  for task in TASKS:
    heads += [f"{task}: before", "after", "beats it"]
  heads += ["clipped", "sampler gap", "compile s", "ms a step"]
  rows = "\n".join(_row(result) for result in results)
  cells = "".join(f"<th>{head}</th>" for head in heads)
  return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _row(result: Result) -> str:
  item = describe.describe(result.name)
  name = html.escape(f"{result.name}")
  title = html.escape(f"{item.title}: {item.summary}", quote=True)
  cells = [
    f"<td title='{title}'>{name}</td>",
    f"<td>{', '.join(item.changes) or '-'}</td>",
  ]
  for index, task in enumerate(TASKS):
    kind, mark = (
      ("right", "\u2713")
      if result.beats_untrained(task)
      else ("wrong", "\u2717")
    )
    cells += [
      _number(f"{result.before[index].mean():.3f}"),
      _number(_with_interval(result.after[index])),
      f"<td class='{kind}'>{mark}</td>",
    ]
  steps = result.rewards.shape[-1]
  clipped = result.metrics.get("clip_fraction")
  cells += [
    _number("-" if clipped is None else f"{clipped:.1%}"),
    _number(f"{result.metrics.get('sampler_gap_mean', np.nan):.4f}"),
    _number(f"{result.compile_seconds:.1f}"),
    _number(f"{1000 * result.seconds / steps:.0f}"),
  ]
  return f"<tr>{''.join(cells)}</tr>"


def _number(text: str) -> str:
  return f"<td class='number'>{text}</td>"


def _with_interval(values: np.ndarray) -> str:
  mean, half = interval(values)
  return f"{mean:.3f}" + ("" if np.isnan(half) else f" \u00b1 {half:.3f}")


def _overview(results: Sequence[Result]) -> bytes:
  """A dot and a bar for each method and task, best first."""
  ranked = sorted(results, key=lambda r: r.rewards.mean())

  def draw(axes):
    for shift, (index, task) in zip(
      (0.14, -0.14), enumerate(TASKS), strict=True
    ):
      found = [interval(r.rewards[index].mean(axis=-1)) for r in ranked]
      means, halves = map(np.array, zip(*found, strict=True))
      axes.errorbar(
          means, np.arange(len(ranked)) + shift, xerr=np.nan_to_num(halves),
          fmt="o", ms=4, lw=1.2, color=_COLORS[task], label=task,
      )  # fmt: skip
    axes.set_yticks(range(len(ranked)), [r.name for r in ranked])
    axes.set_ylim(-0.7, len(ranked) - 0.3)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("mean reward over training")
    axes.legend(loc="lower right", frameon=False)

  size = (8.6, 0.9 + 0.24 * len(ranked))
  return plots.picture(draw, size, "svg", whole_numbers=False)


def _panel(result: Result, base: Result | None) -> bytes:
  """The curves of one method."""

  def draw(axes):
    steps = np.arange(1, result.rewards.shape[-1] + 1)
    for index, task in enumerate(TASKS):
      if base is not None and base is not result:
        other, _ = interval(_smooth(base.rewards[index]))
        axes.plot(steps, other, color=_COLORS[task], lw=1.0, ls=":")
      mean, half = interval(_smooth(result.rewards[index]))
      axes.plot(steps, mean, color=_COLORS[task], lw=1.7, label=task)
      axes.fill_between(
          steps, mean - half, mean + half, color=_COLORS[task], alpha=0.15,
          lw=0,
      )  # fmt: skip
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    plots.title_of(axes, result.name, "reward")

  return plots.picture(draw, (4.3, 2.6), "svg")


def _smooth(curves: np.ndarray, width: int = 3) -> np.ndarray:
  """Running mean over the last axis, shorter at both ends."""
  kernel = np.ones(width)
  sums = [np.convolve(row, kernel, "same") for row in curves]
  counts = np.convolve(np.ones(curves.shape[-1]), kernel, "same")
  return np.array(sums) / counts
