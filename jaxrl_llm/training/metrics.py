"""Numbers and texts of a run, on disk from the moment they are known.

    metrics.jsonl      one line a step: {"step": 3, "reward": 0.5, ...}
    samples.jsonl      one line a completion: {"step": 3, "prompt": ..., ...}
    evaluations.jsonl  one line an evaluation: {"step": 0, "accuracy": ...}
    evaluation_samples.jsonl  one line a problem of an evaluation
    events.out.*       the same scalars for TensorBoard

Names of a step's metrics, as progress and report read them (any other name is
written and plotted by TensorBoard too; one that is missing is left out):

    reward, reward_std, reward/NAME   mean, deviation, mean of each verifier
    length, truncated, entropy        tokens; share cut at T; nats a token
    zero_variance                     share of groups with equal rewards
    sampler_gap_mean, sampler_gap_max |sampler - trainer| log-prob, nats
    loss, grad_norm, learning_rate, clip_fraction
    fitness/mean, fitness/max, fitness/std, fitness/failed   without gradients:
        mean reward of each member; share of members that had none
    update_norm, drift_norm           of the parameters, since the start
    cross_entropy                     of the answers of a supervised run, nats
    unscorable, tokens_per_second
    time/sync, time/rollout, time/reward, time/train, time/step    seconds
    sync/bytes                        received by each device for the sampler
    memory/resident, memory/device, memory/device_peak  MiB
"""

from collections.abc import Iterable, Mapping, Sequence
import contextlib
import json
import math
import os
import pathlib
import resource
import sys
from typing import Any
import uuid

import jax
import numpy as np

from jaxrl_llm.training import experiment

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVALUATIONS = "evaluations.jsonl"
EVALUATION_SAMPLES = "evaluation_samples.jsonl"
_FILES = (METRICS, SAMPLES, EVALUATIONS, EVALUATION_SAMPLES)
_MIB = 2**20


class MetricsWriter:
  """Appends to the files of a run, each line flushed; a context manager."""

  def __init__(
    self,
    folder: str | os.PathLike,
    logging: experiment.Logging,
    *,
    resume_step: int | None = None,
    quiet: bool = False,
  ):
    """Opens the files.

    Args:
      folder: of the run; made if it is not there.
      logging: which writers to use besides the files.
      resume_step: None starts new files; k keeps the lines of steps up to k
        and drops the rest (they come again), each file replaced atomically.
      quiet: open and write nothing, as processes beside the main one do.

    Raises:
      ValueError: if logging.wandb is set and wandb is not installed.
    """
    self._folder = pathlib.Path(folder)
    self._files, self._events, self._wandb = {}, None, None
    if quiet:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    self._wandb = _open_wandb(self._folder, logging.wandb, resume_step)
    for name in _FILES:
      _keep_until(
        self._folder / name, -1 if resume_step is None else resume_step
      )
    self._files = {
      name: open(self._folder / name, "a", encoding="utf-8") for name in _FILES
    }
    if logging.tensorboard:
      import tensorboardX  # slow to import

      if resume_step is None:
        for old in self._folder.glob("events.out.tfevents.*"):
          old.unlink()
      self._events = tensorboardX.SummaryWriter(
        str(self._folder),
        purge_step=None if resume_step is None else resume_step + 1,
      )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes the scalars of one step everywhere."""
    values = {name: _plain(value) for name, value in metrics.items()}
    self._append(METRICS, [{"step": step} | values])
    self._scalars(step, values)

  def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes completions of one step, one dict a completion."""
    self._append(SAMPLES, [{"step": step} | _plain(row) for row in rows])

  def evaluation(
    self,
    step: int,
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] = (),
  ) -> None:
    """Writes the result of an evaluation and, if given, its rows."""
    values = {name: _plain(value) for name, value in metrics.items()}
    self._append(
      EVALUATION_SAMPLES, [{"step": step} | _plain(row) for row in rows]
    )
    self._append(EVALUATIONS, [{"step": step} | values])
    self._scalars(step, {f"eval/{k}": v for k, v in values.items()})

  def close(self) -> None:
    """Flushes and closes every writer; a second call does nothing."""
    for file in self._files.values():
      with contextlib.suppress(OSError):  # a full disk was told of at the write
        file.close()
    if self._events is not None:
      self._events.close()
    if self._wandb is not None:
      self._wandb.finish()
    self._events = self._wandb = None

  def __enter__(self) -> "MetricsWriter":
    """Returns itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Closes."""
    self.close()

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    if name not in self._files:
      return
    file = self._files[name]
    try:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
      file.flush()
    except OSError as error:
      raise OSError(
        f"{self._folder / name} could not be written: {error.strerror}; what"
        " was saved before is untouched: make room, then --resume."
      ) from error

  def _scalars(self, step: int, values: Mapping[str, Any]) -> None:
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
    if self._events is not None:
      for name, value in numbers.items():
        self._events.add_scalar(name, value, step)
      self._events.flush()
    if self._wandb is not None:
      self._wandb.log(numbers, step=step)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a .jsonl file, [] if there is none; a torn end is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  for line in path.read_text(encoding="utf-8").split("\n"):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue  # the line that a kill cut short
  return rows


def memory() -> dict[str, float]:
  """Memory in MiB: of this process, and of the fullest local device if told."""
  metrics = {"memory/resident": _resident_mib()}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  for name, key in (
    ("memory/device", "bytes_in_use"),
    ("memory/device_peak", "peak_bytes_in_use"),
  ):
    values = [s[key] for s in stats if key in s]
    if values:
      metrics[name] = max(values) / _MIB
  return metrics


def _resident_mib() -> float:
  """Resident set of this process; its peak where the present is not told."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
  except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


def _plain(value: Any) -> Any:
  """What json takes; numbers that are not finite become null."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return _plain(np.asarray(value).astype(_host_type(value)).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _host_type(value: Any) -> Any:
  """bfloat16 and its like as float32; the rest as they are."""
  dtype = np.asarray(value).dtype
  return dtype if dtype.kind in "biufUSO" else np.float32


def _keep_until(path: pathlib.Path, step: int) -> None:
  """Drops lines after `step` by writing a new file and renaming it."""
  if not path.exists():
    return
  rows = [row for row in read(path) if row.get("step", 0) <= step]
  scratch = path.with_name(path.name + ".new")
  with open(scratch, "w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())
  os.replace(scratch, path)


def _open_wandb(folder: pathlib.Path, project: str, resume_step: int | None):
  """The Weights & Biases run of this folder, or None if there is no project."""
  if not project:
    return None
  try:
    import wandb
  except ImportError as error:
    raise ValueError(
      f"logging.wandb is {project!r} but wandb is not installed: pip install"
      " 'jaxrl-llm[wandb]', or leave logging.wandb empty."
    ) from error
  name = folder / "wandb_id.txt"
  if resume_step is None or not name.exists():
    name.write_text(uuid.uuid4().hex[:8])
  return wandb.init(
    project=project,
    name=folder.name,
    dir=str(folder),
    id=name.read_text(),
    resume="allow",
  )
