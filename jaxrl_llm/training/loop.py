"""The loop a person watches: collect, score, train, write; again."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import signal
import time
from typing import Any

import jax

from jaxrl_llm.distributed import processes
from jaxrl_llm.methods import base, saved
from jaxrl_llm.training import (
  adapter,
  experiment,
  exporting,
  inference,
  learner,
  population,
  report,
  setup,
  supervised,
)
from jaxrl_llm.training import checkpoint as checkpoints
from jaxrl_llm.training import metrics as metric_files
from jaxrl_llm.training import progress as displays

# Seconds in which a second signal is the first one again: launchers send one to
# every process of a job, and the guard passes its own on.
_ECHO = 1.0


class Stopped(Exception):
  """The run was told to stop, and everything is saved.

  Attributes:
    signum: the signal, for the exit status.
    step: rollouts trained on.
  """

  def __init__(self, signum: int, step: int, folder: pathlib.Path):
    """Says what happened and how to go on."""
    super().__init__(
      f"stopped by {signal.Signals(signum).name} after step {step}; all is"
      f" saved in {folder}, --resume goes on from there."
    )
    self.signum = signum
    self.step = step


def train(
  config: experiment.Experiment,
  *,
  resume: bool = False,
  overwrite: bool = False,
) -> pathlib.Path:
  """Runs an experiment from its first step, or from its newest checkpoint.

  Args:
    config: the experiment; of a supervised method see supervised.adapted.
    resume: go on from the newest checkpoint in runs/NAME; a run that was
      killed before its first one starts anew.
    overwrite: delete what runs/NAME holds and start anew.

  Returns:
    The run's folder: config.json, metrics.jsonl, evaluations.jsonl,
    samples.jsonl, TensorBoard events, checkpoints/, report.html, export/.

  Raises:
    ValueError, TypeError, FileNotFoundError: one line, before the first step.
    Stopped: after SIGINT or SIGTERM, when all is saved.
    OSError: a checkpoint could not be written; those before it are whole.
  """
  experiment.validate(config)
  config = supervised.adapted(config)
  folder = pathlib.Path(config.runs).expanduser() / config.name
  processes.on_main(
    lambda: _prepare(folder, resume=resume, overwrite=overwrite)
  )
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(setup.make_pool(config))
    run = setup.build(config)
    processes.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    saver = stack.enter_context(
      checkpoints.Checkpointer(
        folder / "checkpoints",
        keep=config.checkpoint.keep,
        keep_period=config.checkpoint.keep_period,
      )
    )
    trainer = _Trainer(run, pool, saver, folder)
    if resume and saver.steps():
      trainer.restore()
    text = json.dumps(describe(config), indent=2) + "\n"
    processes.on_main(lambda: (folder / "config.json").write_text(text))
    stack.enter_context(trainer)
    trainer.run()
  processes.on_main(lambda: report.write_report(folder))
  return folder


class _Trainer:
  """The mutable part of a run: what learns, files, display."""

  def __init__(self, run: setup.Run, pool, saver, folder: pathlib.Path):
    self._run, self._pool = run, pool
    self._saver, self._folder = saver, folder
    self._learner = _learner_of(run)(run, pool)
    self._origin = run.origin()
    self._first = 0
    self._signal, self._heard = None, 0.0
    self._writer = self._display = None

  def __enter__(self):
    config = self._run.config
    resumed = self._first or None
    quiet = not processes.is_main()
    self._writer = metric_files.MetricsWriter(
      self._folder, config.logging, resume_step=resumed, quiet=quiet
    )
    self._display = displays.Progress(
      total=config.steps,
      start=self._first,
      header=self._header(),
      quiet=quiet,
    )
    self._handlers = {
      number: signal.signal(number, self._on_signal)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *exc):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    self._learner.close()
    self._display.close()
    self._writer.close()

  def _on_signal(self, number, frame):
    del frame
    if self._signal is not None and time.monotonic() > self._heard + _ECHO:
      raise KeyboardInterrupt
    if self._signal is not None:
      return
    self._signal, self._heard = number, time.monotonic()
    self._display.say("stopping soon, all is saved first; again: at once")

  def _header(self) -> dict[str, Any]:
    config, loaded = self._run.config, self._run.loaded
    leaves = jax.tree.leaves(loaded.params)
    own = self._run.layout.rollout_mesh
    devices = self._run.mesh.size if self._run.mesh else 1
    devices += own.size if own else 0
    all_devices = jax.device_count()
    idle = f" of {all_devices}" if devices < all_devices else ""
    idle += f", {own.size} to sample," if own else ""
    adapter_size = sum(
      x.size for x in jax.tree.leaves(self._learner.state.params)
    )
    return {
      "run": str(self._folder),
      "model": f"{config.model.name} ({loaded.source})",
      "parameters": sum(leaf.size for leaf in leaves),
      **({"adapter": adapter_size} if config.lora.rank else {}),
      "method": type(config.method).__name__,
      "batch": f"{config.prompts_per_step} prompts x {self._each()}",
      "devices": f"{devices}{idle} x {jax.devices()[0].device_kind}",
    } | ({"processes": processes.count()} if processes.count() > 1 else {})

  def _each(self) -> str:
    """How many completions a prompt has in a step."""
    method = self._run.method
    if isinstance(method, base.Evolution):
      return f"{method.population} members"
    return str(self._run.config.group_size)

  def restore(self):
    """Loads the newest checkpoint into state, data order and position."""
    state, extra, self._first = self._saver.restore(self._learner.state)
    adapter.check_origin(extra.get("adapter", {}), self._origin)
    self._run.batches.set_state(extra["batches"])
    self._learner.restore(state, extra)

  def save(self, step: int):
    """Begins to write everything that the next step depends on."""
    extra = self._learner.extra()  # first: what it samples, it takes
    extra |= {
      "batches": self._run.batches.get_state(),
      "adapter": self._origin,
    }
    self._saver.save(step, self._learner.state, extra)

  def run(self):
    """All steps that are left, with evaluations and checkpoints."""
    config = self._run.config
    if not self._evaluated(self._first):
      self.evaluate(self._first)
    if self._first < config.steps:
      self._train()
    if config.export:
      self._display.say(f"exporting to {self._folder / 'export'}")
      exporting.export(
        self._run, self._learner.state.params, self._folder / "export"
      )
    self._saver.wait()

  def _train(self):
    config = self._run.config
    self._learner.begin()
    for step in range(self._first, config.steps):
      self._one_step(step)
      self._saver.check()
      done = step + 1
      every = config.checkpoint.every
      if done == config.steps or every and done % every == 0:
        self.save(done)
      if self._told() and done < config.steps:
        self._stop(done)
      if not self._evaluated(done):
        self.evaluate(done)

  def _one_step(self, step: int):
    learnt = self._learner.step(step)
    metrics = learnt.metrics | metric_files.memory()
    self._writer.write(step + 1, metrics)
    self._writer.samples(step + 1, learnt.rows)
    self._display.update(step + 1, metrics, messages=learnt.messages)

  def evaluate(self, step: int):
    """Accuracy on held-out problems, written and shown."""

    def say(done, total):
      self._display.evaluating(done, total)
      if self._told() and done < total:
        self._stop(step)

    self._learner.settle()
    result = inference.held_out(
      self._run, self._pool, self._learner.state.params, say=say
    )
    metrics = result.metrics
    if self._run.method.supervised:
      metrics |= self._learner.held_out()
    self._writer.evaluation(step, metrics, result.rows)
    self._display.evaluation(step, metrics)

  def _told(self) -> bool:
    """Whether any process was told to stop; all agree."""
    agreed = max(processes.gather(self._signal or 0))
    if agreed:
      self._signal = agreed
    return bool(agreed)

  def _evaluated(self, step: int) -> bool:
    """Whether no evaluation is owed after `step` steps."""
    every = self._run.config.evaluation.every
    due = step in (0, self._run.config.steps) or every and step % every == 0
    if not due:
      return True
    file = self._folder / metric_files.EVALUATIONS
    rows = processes.on_main(lambda: metric_files.read(file))
    return any(row["step"] == step for row in rows)

  def _stop(self, step: int):
    """Saves, unless nothing was trained yet, and raises Stopped."""
    if step:
      self.save(step)
      self._saver.wait()
    raise Stopped(self._signal, step, self._folder)


def _learner_of(run: setup.Run):
  """Who makes the steps of a run."""
  if isinstance(run.method, base.Evolution):
    return population.Learner
  return supervised.Learner if run.method.supervised else learner.Learner


def describe(config: experiment.Experiment) -> dict[str, Any]:
  """The config as plain data; see methods.saved for that of the method."""
  method = saved.to_plain(config.method)
  return dataclasses.asdict(config) | {"method": method}


def _prepare(folder: pathlib.Path, *, resume: bool, overwrite: bool) -> None:
  """Refuses to mix two runs in one folder."""
  if resume and overwrite:
    raise ValueError("--resume and --overwrite exclude each other.")
  if resume and not (folder / "config.json").exists():
    raise FileNotFoundError(
      f"nothing to resume in {folder}: no run was started there; leave"
      " --resume out, or set --runs and --name to those of the run."
    )
  steps = folder / "metrics.jsonl"
  if overwrite and steps.exists():
    shutil.rmtree(folder)
  elif not resume and steps.exists() and steps.stat().st_size:
    raise ValueError(
      f"{folder} already holds a run; --resume goes on with it, --overwrite"
      " deletes it, --name NAME writes elsewhere."
    )
