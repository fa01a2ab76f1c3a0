"""What a person sees while a run goes on.

A header, one line a step and, on a terminal, a live bar with the time left.
Where the output is not a terminal (a log file, CI) there are plain lines only.
"""

from collections import deque
from collections.abc import Mapping
import math
import statistics
import time
from typing import Any

import rich.console
import rich.markup
import rich.progress

from jaxrl_llm.training import experiment

# key of the step's metrics, title, how it is written
_FIELDS = (
  ("reward", "reward", "{:.3f}"),
  ("reward_std", "+-", "{:.2f}"),
  ("length", "length", "{:.1f}"),
  ("entropy", "entropy", "{:.3f}"),
  ("zero_variance", "same", "{:.0%}"),
  ("sampler_gap", "gap", "{:.1e}"),
  ("grad_norm", "grad", "{:.3f}"),
  ("tokens_per_second", "tok/s", "{:.0f}"),
)
_PHASES = ("rollout", "reward", "train")
_REPEAT = 10  # steps between two showings of the same hint


class Progress:
  """Prints a run as it happens; a context manager."""

  def __init__(
    self,
    config: experiment.Experiment,
    *,
    parameters: int,
    devices: str,
    start: int = 0,
    interval: float = 2.0,
    console: rich.console.Console | None = None,
  ):
    """Says nothing yet; the header comes with `with`.

    Args:
      config: of the run.
      parameters: number of trained parameters.
      devices: in words, for example "1 x TPU v5e".
      start: steps already done (resumed runs).
      interval: seconds between two printed lines of steps; the first and the
        last step are always printed.
      console: where to print; standard output if None.
    """
    self._config = config
    self._facts = _facts(config, parameters, devices)
    self._start = start
    self._interval = interval
    self._console = console or rich.console.Console(highlight=False)
    self._seconds = deque(maxlen=20)  # of the last steps
    self._last_end = self._last_line = -math.inf
    self._hint_step: dict[str, int] = {}
    self._bar = None

  def __enter__(self) -> "Progress":
    """Prints the header and starts the bar if this is a terminal."""
    for name, value in self._facts.items():
      self._print(f"[dim]{name:<11}[/dim]{rich.markup.escape(value)}")
    if self._start:
      self._print(f"[dim]{'resumed':<11}[/dim]after step {self._start}")
    if self._console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("{task.fields[left]}"),
        console=self._console,
        refresh_per_second=4,
      )
      self._task = self._bar.add_task(
          "starting", total=self._config.steps, completed=self._start,
          left="compiling",
      )  # fmt: skip
      self._bar.start()
    self._last_end = time.perf_counter()
    return self

  def __exit__(self, *exc) -> None:
    """Stops the bar."""
    if self._bar is not None:
      self._bar.stop()
    self._bar = None

  def phase(self, name: str) -> None:
    """Says what is going on now ("rollout", "evaluation", ...)."""
    if self._bar is not None:
      self._bar.update(self._task, description=name)

  def message(self, text: str) -> None:
    """Prints one line above the bar."""
    self._print(rich.markup.escape(text))

  def step(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Prints one finished step and moves the bar.

    Args:
      step: number of finished steps, from 1.
      metrics: with the names listed in metrics.py; missing ones are left out.
    """
    now = time.perf_counter()
    self._seconds.append(now - self._last_end)
    self._last_end = now
    left = self.seconds_left(step)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, left=_left(left))
    last = step >= self._config.steps
    if now - self._last_line >= self._interval or last:
      self._last_line = now
      text = line(step, self._config.steps, metrics)
      if self._bar is None and left:
        text += f"  {_left(left)}"
      self._print(rich.markup.escape(text))
    self._hint(step, metrics)

  def seconds_left(self, step: int) -> float | None:
    """Median of the last steps times the steps to come; None if unknown.

    The first step compiles, so it counts only while there is no other.
    """
    known = list(self._seconds)
    if step - self._start == len(known) and len(known) > 1:
      known = known[1:]
    if not known:
      return None
    return statistics.median(known) * (self._config.steps - step)

  def _hint(self, step: int, metrics: Mapping[str, Any]) -> None:
    text = hint(metrics)
    if text is None:
      return
    if step - self._hint_step.get(text, -_REPEAT) >= _REPEAT:
      self._hint_step[text] = step
      self._print(f"[yellow]  {rich.markup.escape(text)}[/yellow]")

  def _print(self, text: str) -> None:
    self._console.print(text, soft_wrap=True)


def line(step: int, steps: int, metrics: Mapping[str, Any]) -> str:
  """One step in one line; values that are missing or not numbers left out."""
  parts = [f"step {step:>{len(str(steps))}}/{steps}"]
  for key, title, form in _FIELDS:
    value = _number(metrics.get(key))
    if value is not None:
      parts.append(f"{title} {form.format(value)}")
  total = _number(metrics.get("time/step"))
  phases = [
    f"{name} {value:.1f}"
    for name in _PHASES
    if (value := _number(metrics.get(f"time/{name}"))) is not None
  ]
  if total is not None:
    parts.append(
      f"{total:.1f} s" + (f" ({', '.join(phases)})" if phases else "")
    )
  memory = _number(metrics.get("memory/resident"))
  if memory is not None:
    parts.append(f"{memory / 1024:.1f} GiB")
  device = _number(metrics.get("memory/device_peak"))
  if device is not None:
    parts.append(f"device {device / 1024:.1f} GiB")
  return "  ".join(parts)


def hint(metrics: Mapping[str, Any]) -> str | None:
  """What a person would ask about these numbers, answered; None if all is well.

  Args:
    metrics: of one step.

  Returns:
    One line, the most urgent thing first.
  """
  norm = metrics.get("grad_norm")
  if norm is not None and not math.isfinite(norm):
    return (
      f"the gradient is {norm}: lower optimizer.learning_rate, or look for"
      " the reward or weight that is not finite."
    )
  if metrics.get("unscorable", 0) >= 1:
    return (
      "no completion could be scored: every call of the reward failed or"
      " timed out; see the messages above and reward_timeout."
    )
  if metrics.get("zero_variance", 0) >= 1:
    return _why_zero(metrics)
  if metrics.get("truncated", 0) >= 0.9 and metrics.get("reward", 1) <= 0:
    return (
      "nearly every completion is cut at completion_length before its"
      " answer: raise completion_length or shorten the task."
    )
  return None


def _why_zero(metrics: Mapping[str, Any]) -> str:
  """Why nothing is learned when no group has a better and a worse member."""
  start = (
    "why is the loss 0? in every group all completions got the same reward"
  )
  reward = metrics.get("reward", math.nan)
  if reward <= 0:
    return (
      f"{start} (none is right): easier problems, solved examples in the"
      " prompt, a higher temperature or a larger group_size would help."
    )
  if reward >= 1:
    return f"{start} (all are right): the task is solved; take harder problems."
  return (
    f"{start}: raise sampling.temperature or group_size, or give a reward"
    " that tells completions apart."
  )


def _facts(
  config: experiment.Experiment, parameters: int, devices: str
) -> dict[str, str]:
  """The header: what is running."""
  rows = config.prompts_per_step * config.group_size
  method = config.method
  values = ", ".join(
    f"{name}={value}" for name, value in sorted(vars(method).items())
  )
  folder = f"{config.runs}/{config.name}"
  return {
    "model": f"{config.model.name}, {_count(parameters)} parameters,"
    f" {config.model.dtype}",
    "method": f"{type(method).__name__}({values})",
    "task": f"{config.data.source}, reward {' + '.join(config.reward)}",
    "batch": f"{config.prompts_per_step} prompts x {config.group_size} ="
    f" {rows} completions of at most {config.completion_length} tokens",
    "steps": f"{config.steps}, learning rate"
    f" {config.optimizer.learning_rate:g} {config.optimizer.schedule}",
    "devices": devices,
    "folder": folder,
  }


def _count(number: int) -> str:
  """135_000_000 as "135 M"."""
  for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
    if number >= size:
      return f"{number / size:.3g}{unit}"
  return str(number)


def _number(value: Any) -> float | None:
  return None if value is None else float(value)


def _left(seconds: float | None) -> str:
  """ "1:02:03 left"."""
  if seconds is None:
    return ""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  clock = (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
  return f"{clock} left"
