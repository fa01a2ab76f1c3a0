"""What a person sees while a run goes on.

A header, one line a step and, on a terminal, a live bar with the time left.
Where the output is not a terminal (a log file, CI) there are plain lines only.
"""

from collections import deque
from collections.abc import Mapping, Sequence
import math
import re
import statistics
import time
from typing import Any

import rich.console
import rich.markup
import rich.progress

# key of the step's metrics, title, how it is written
_FIELDS = (
  ("reward", "reward", "{:.3f}"),
  ("reward_std", "+-", "{:.2f}"),
  ("fitness/max", "best", "{:.3f}"),
  ("length", "length", "{:.1f}"),
  ("cross_entropy", "cross-entropy", "{:.3f}"),
  ("entropy", "entropy", "{:.3f}"),
  ("zero_variance", "same", "{:.0%}"),
  ("sampler_gap_mean", "gap", "{:.1e}"),
  ("grad_norm", "grad", "{:.3f}"),
  ("update_norm", "update", "{:.3f}"),
  ("drift_norm", "drift", "{:.3f}"),
  ("tokens_per_second", "tok/s", "{:.0f}"),
)
_PHASES = ("rollout", "reward", "train")
_REPEAT = 10  # steps between two showings of the same hint


class Progress:
  """Prints a run as it happens; a context manager."""

  def __init__(
    self,
    *,
    total: int,
    start: int = 0,
    header: Mapping[str, Any],
    interval: float = 2.0,
    console: rich.console.Console | None = None,
    quiet: bool = False,
  ):
    """Prints the header and starts the bar if this is a terminal.

    Args:
      total: steps of the whole run.
      start: steps already done (resumed runs).
      header: what is running, by name; numbers are shortened ("135 M").
      interval: seconds between two printed lines of steps; the first and the
        last step are always printed.
      console: where to print; standard output if None.
      quiet: print nothing there.
    """
    self._total, self._start, self._interval = total, start, interval
    self._console = console or rich.console.Console(
      highlight=False, quiet=quiet
    )
    self._seconds = deque(maxlen=20)  # of the last steps
    self._last_line = -math.inf
    self._hint_step: dict[str, int] = {}
    self._bar = None
    for name, value in header.items():
      text = _count(value) if isinstance(value, int) else str(value)
      self._print(f"[dim]{name:<12}[/dim]{rich.markup.escape(text)}")
    if start:
      self._print(f"[dim]{'resumed':<12}[/dim]after step {start}")
    if self._console.is_terminal:
      self._start_bar()
    self._last_end = time.perf_counter()

  def __enter__(self) -> "Progress":
    """Returns itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Closes."""
    self.close()

  def close(self) -> None:
    """Stops the bar; a second call does nothing."""
    if self._bar is not None:
      self._bar.stop()
    self._bar = None

  def say(self, text: str) -> None:
    """Prints one line above the bar."""
    self._print(rich.markup.escape(text))

  def update(
    self, step: int, metrics: Mapping[str, Any], messages: Sequence[str] = ()
  ) -> None:
    """Prints one finished step and moves the bar.

    Args:
      step: number of finished steps, from 1.
      metrics: with the names listed in metrics.py; missing ones are left out.
      messages: of the rewards; each is shown, repeated ones rarely.
    """
    now = time.perf_counter()
    self._seconds.append(now - self._last_end)
    self._last_end = now
    left = _left(self.seconds_left(step))
    if self._bar is not None:
      self._bar.update(
        self._task, completed=step, description="training", left=left
      )
    if now - self._last_line >= self._interval or step >= self._total:
      self._last_line = now
      text = line(step, self._total, metrics)
      plain = self._bar is None and step < self._total
      self._print(rich.markup.escape(f"{text}  {left}" if plain else text))
    for text in [*messages, hint(metrics)]:
      self._warn(step, text)

  def evaluating(self, done: int, total: int) -> None:
    """Shows on the bar how far an evaluation is."""
    if self._bar is not None:
      self._bar.update(
        self._task, description=f"evaluating {done}/{total}", refresh=True
      )
    self._last_end = time.perf_counter()  # not part of a step

  def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Prints the result of an evaluation after `step` steps."""
    self._print(f"[bold]{rich.markup.escape(verdict(step, metrics))}[/bold]")
    self._last_end = time.perf_counter()

  def seconds_left(self, step: int) -> float | None:
    """Median of the last steps times the steps to come; None if unknown.

    The first step compiles, so it counts only while there is no other.
    """
    known = list(self._seconds)
    if step - self._start == len(known) and len(known) > 1:
      known = known[1:]
    if not known:
      return None
    return statistics.median(known) * (self._total - step)

  def _start_bar(self) -> None:
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
      "starting", total=self._total, completed=self._start, left=""
    )
    self._bar.start()

  def _warn(self, step: int, text: str | None) -> None:
    """Prints a hint, the same one at most every _REPEAT steps."""
    key = re.sub(r"\d+", "", text or "")  # row numbers make no new message
    if text and step - self._hint_step.get(key, -_REPEAT) >= _REPEAT:
      self._hint_step[key] = step
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
  if metrics.get("fitness/std", 1) <= 0:
    return (
      "why does nothing move? all members have the same fitness"
      f" ({metrics['fitness/mean']:g}): more prompts_per_step, a larger"
      " method.sigma or a finer reward would tell them apart."
    )
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
    return (
      f"{start} ({reward:g}): if that is the most there is the task is"
      " solved; take harder problems."
    )
  return (
    f"{start}: raise sampling.temperature or group_size, or give a reward"
    " that tells completions apart."
  )


def verdict(step: int, metrics: Mapping[str, Any]) -> str:
  """The result of an evaluation in one line."""
  text = f"evaluation after {step} steps:  accuracy {metrics['accuracy']:.3f}"
  if "accuracy_low" in metrics:
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    text += f" ({low:.3f} to {high:.3f})"
  if "problems" in metrics:
    text += f" on {metrics['problems']:.0f} problems"
  for name, value in metrics.items():
    if name.startswith("pass@") and name[5:].isdigit():
      text += f"  {name} {value:.3f}"
  if "cross_entropy" in metrics:
    text += f"  cross-entropy {metrics['cross_entropy']:.3f}"
  if metrics.get("unscorable", 0) > 0:
    text += f"  unscorable {metrics['unscorable']:.1%}"
  return text


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
