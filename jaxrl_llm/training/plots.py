"""Pictures of a run for the report, as SVG or PNG bytes."""

from collections.abc import Callable, Mapping, Sequence
import io
from typing import Any

_INK = "#1f2328"
SOFT = "#59636e"
_GRID = "#e6e9ed"
COLORS = ("#0b66c3", "#d9730d", "#1a7f37", "#8250df")
_PHASES = ("rollout", "reward", "train")

Rows = Sequence[Mapping[str, Any]]


def learning_curve(steps: Rows, evaluations: Rows, *, form: str) -> bytes:
  """Held-out accuracy with intervals, over the reward in training.

  Args:
    steps: lines of metrics.jsonl.
    evaluations: lines of evaluations.jsonl.
    form: "svg" or "png".
  """

  def draw(axes):
    x, y = _series(steps, "reward")
    if y:
      axes.plot(x, y, color=COLORS[1], lw=0.8, alpha=0.45)
      axes.plot(x, _smooth(y), color=COLORS[1], lw=1.8, label="training reward")
    at = [row["step"] for row in evaluations]
    accuracy = [row["accuracy"] for row in evaluations]
    if at:
      low = [row.get("accuracy_low", row["accuracy"]) for row in evaluations]
      high = [row.get("accuracy_high", row["accuracy"]) for row in evaluations]
      bars = [
        [a - b for a, b in zip(accuracy, low, strict=True)],
        [b - a for a, b in zip(accuracy, high, strict=True)],
      ]
      axes.errorbar(
          at, accuracy, yerr=bars, color=COLORS[0], lw=1.8, marker="o",
          ms=6, capsize=4, label="held-out accuracy (95 %)",
      )  # fmt: skip
      for step, value in {at[0]: accuracy[0], at[-1]: accuracy[-1]}.items():
        axes.annotate(
            f"{value:.2f}", (step, value), xytext=(9, -13),
            textcoords="offset points", color=COLORS[0], weight="bold",
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.margins(x=0.06, y=0.1)
    if min([0, *y, *accuracy]) >= 0:
      axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(loc="best", frameon=False, fontsize=9)

  return picture(draw, (8.6, 3.6), form)


def panels(steps: Rows, *, form: str = "svg") -> list[bytes]:
  """One small picture for each thing worth watching that was logged."""
  single = (
    ("reward", "reward of the rollouts", "mean, and one deviation around"),
    ("cross_entropy", "cross-entropy of the answers", "nats a token"),
    ("length", "completion length", "tokens"),
    ("entropy", "entropy", "nats a token"),
    ("zero_variance", "groups without signal", "share with equal rewards"),
    ("sampler_gap_mean", "sampler against trainer", "|log-prob gap|, nats"),
    ("grad_norm", "gradient norm", "before clipping"),
    ("fitness/std", "fitness of the members", "deviation"),
    ("update_norm", "update", "norm, before the decay"),
    ("drift_norm", "drift", "norm of parameters - start"),
    ("loss", "loss", ""),
    ("clip_fraction", "clipped tokens", "share"),
    ("tokens_per_second", "speed", "sampled tokens a second"),
  )
  pictures = [
    picture(_line(steps, key, title, unit), (4.3, 2.6), form)
    for key, title, unit in single
    if _series(steps, key)[1]
  ]
  if _series(steps, "time/step")[1]:
    pictures.append(picture(_phases(steps), (4.3, 2.6), form))
  if _series(steps, "memory/resident")[1]:
    pictures.append(picture(_memory(steps), (4.3, 2.6), form))
  return pictures


def _line(steps: Rows, key: str, title: str, unit: str) -> Callable:
  def draw(axes):
    x, y = _series(steps, key)
    axes.plot(x, y, color=COLORS[0], lw=0.8, alpha=0.45)
    axes.plot(x, _smooth(y), color=COLORS[0], lw=1.8)
    _, spread = _series(steps, f"{key}_std")
    if len(spread) == len(y):
      low = [a - b for a, b in zip(y, spread, strict=True)]
      high = [a + b for a, b in zip(y, spread, strict=True)]
      axes.fill_between(x, low, high, color=COLORS[0], alpha=0.12, lw=0)
    title_of(axes, title, unit)
    if min(y) >= 0 and len(spread) != len(y):
      axes.set_ylim(0, 1.08 * max(y) or 1)

  return draw


def _phases(steps: Rows) -> Callable:
  """Seconds of each phase, one on top of the other; compilation cut off."""

  def draw(axes):
    x, total = _series(steps, "time/step")
    series = {p: _series(steps, f"time/{p}")[1] for p in _PHASES}
    stack = {p: y for p, y in series.items() if len(y) == len(x)}
    if stack:
      axes.stackplot(
          x, list(stack.values()), labels=list(stack), colors=COLORS,
          alpha=0.8, step="mid",
      )  # fmt: skip
      axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=3)
    else:
      axes.plot(x, total, color=COLORS[0], lw=1.8)
    usual = sorted(total)[int(0.9 * (len(total) - 1))]
    axes.set_ylim(0, 1.45 * usual or 1)
    title_of(axes, "time", "seconds a step")

  return draw


def _memory(steps: Rows) -> Callable:
  def draw(axes):
    top = 0.0
    for color, (key, label) in zip(
      COLORS,
      (("memory/resident", "process"), ("memory/device_peak", "device peak")),
      strict=False,
    ):
      x, y = _series(steps, key)
      if y:
        axes.plot(x, [v / 1024 for v in y], color=color, lw=1.8, label=label)
        top = max(top, max(y) / 1024)
    axes.set_ylim(0, 1.15 * top)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    title_of(axes, "memory", "GiB")

  return draw


def _series(steps: Rows, key: str) -> tuple[list[int], list[float]]:
  """Steps and values where the value is a number."""
  rows = [row for row in steps if row.get(key) is not None]
  return [row["step"] for row in rows], [float(row[key]) for row in rows]


def _smooth(values: Sequence[float]) -> list[float]:
  """Centred running mean over a tenth of the run."""
  half = max(len(values) // 20, 1 if len(values) > 4 else 0)
  windows = [
    values[max(i - half, 0) : i + half + 1] for i in range(len(values))
  ]
  return [sum(window) / len(window) for window in windows]


def title_of(axes: Any, title: str, unit: str) -> None:
  """Writes what is shown, and in small letters in what unit."""
  axes.set_title(title, loc="left", fontsize=10.5, weight="bold", color=_INK)
  if unit:
    axes.set_title(unit, loc="right", fontsize=8.5, color=SOFT)


def picture(
  draw: Callable,
  size: tuple[float, float],
  form: str,
  *,
  whole_numbers: bool = True,
) -> bytes:
  """Draws on one pair of axes and returns the file's bytes.

  Args:
    draw: called with the axes.
    size: width and height in inches.
    form: "svg" or "png".
    whole_numbers: whether the horizontal axis counts steps.
  """
  import matplotlib  # slow to import
  from matplotlib.backends import backend_agg, backend_svg
  from matplotlib.figure import Figure

  style = {
      "font.size": 9.5, "axes.edgecolor": SOFT, "axes.labelcolor": SOFT,
      "xtick.color": SOFT, "ytick.color": SOFT, "text.color": _INK,
      "axes.spines.top": False, "axes.spines.right": False,
      "axes.grid": True, "grid.color": _GRID, "axes.axisbelow": True,
      "svg.fonttype": "none", "svg.hashsalt": "jaxrl",
      "font.family": "sans-serif",
  }  # fmt: skip
  with matplotlib.rc_context(style):
    figure = Figure(figsize=size, layout="constrained")
    canvas = {
        "svg": backend_svg.FigureCanvasSVG, "png": backend_agg.FigureCanvasAgg
    }[form]  # fmt: skip
    canvas(figure)
    axes = figure.add_subplot()
    draw(axes)
    if whole_numbers:
      axes.xaxis.get_major_locator().set_params(integer=True)
    file = io.BytesIO()
    options = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 160}
    figure.savefig(file, format=form, **options)
  content = file.getvalue()
  return content[content.index(b"<svg") :] if form == "svg" else content
