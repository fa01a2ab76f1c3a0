"""Kills a run at random moments, resumes it, and looks for a difference.

    python scripts/kill_runs.py [--kills 20] [--seed 0] [--folder FOLDER]

A tiny run is trained once without interruption and once with SIGKILLs: while
it starts, in a step, while a checkpoint is being written. At the end all that
a run leaves must be the same to the bit: parameters, optimizer state, place in
the data, metrics and texts of every step, the exported weights. Prints what
was hit and ends with 1 if anything differs. The runs share a cache of compiled
programs, so that a restart costs its imports.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from jaxrl_llm.training import checkpoint, config_file, experiment, setup

ROOT = pathlib.Path(__file__).parents[1]
MOMENTS = ("start", "step", "save")
CONFIG = """
import pathlib
from jaxrl_llm.training import experiment

SLOW = pathlib.Path(__file__).with_name("slow.py")

def get_config():
  return experiment.Experiment(
    name="run",
    runs=str(pathlib.Path(__file__).parent),
    steps=STEPS,
    prompts_per_step=2,
    group_size=4,
    prompt_length=12,
    completion_length=4,
    mini_batches=2,
    model=experiment.Model(name="tiny"),
    data=experiment.Data(source="addition", digits=1, few_shot=False, size=30),
    reward=("format:[0-9]", f"{SLOW}:slow"),
    reward_timeout=60.0,
    optimizer=experiment.Optimizer(learning_rate=5e-3, schedule="cosine"),
    evaluation=experiment.Evaluation(every=7, examples=4, batch=4),
    checkpoint=experiment.Checkpoint(every=3),
    logging=experiment.Logging(tensorboard=False),
  )
"""
SLOW = """
import pathlib
import time

HOLD = pathlib.Path(__file__).with_name("hold")

def slow(prompts, completions, answers):
  time.sleep(0.02)  # makes a step long enough to be hit
  while HOLD.exists():
    time.sleep(0.02)
  return [0.1 * len(text.strip()) for text in completions]
"""


class Sandbox:
  """A folder with a config, and processes that train there."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path, *, steps: int):
    """Writes the config.

    Args:
      folder: is made; the run goes to its sub-folder `run`.
      cache: of compiled programs.
      steps: of the whole run.
    """
    folder.mkdir()
    (folder / "kill.py").write_text(CONFIG.replace("STEPS", str(steps)))
    (folder / "slow.py").write_text(SLOW)
    self.config = folder / "kill.py"
    self.run = folder / "run"
    self.hold = folder / "hold"  # while it is there the reward is not ready
    self._env = os.environ | {
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

  def start(self, *options: str, devices: int = 1) -> subprocess.Popen:
    """A process that trains, or goes on where there is something to resume."""
    args = ["--resume"] if (self.run / "config.json").exists() else []
    command = ["-m", "jaxrl_llm", "train", str(self.config), *args, *options]
    return subprocess.Popen(
      [sys.executable, *command],
      env=self._env | {"JAX_NUM_CPU_DEVICES": str(devices)},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def finish(self, *options: str, devices: int = 1) -> str:
    """Trains to the end; returns what it said on stderr."""
    process = self.start(*options, devices=devices)
    _, err = process.communicate(timeout=600)
    if process.returncode:
      raise RuntimeError(f"the run ended with {process.returncode}: {err}")
    return err

  def lines(self) -> int:
    """Steps whose metrics are written."""
    path = self.run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def saving(self) -> bool:
    """Whether a half-written checkpoint is there."""
    return any((self.run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

  def saved(self) -> list[int]:
    """Steps of the complete checkpoints."""
    return self._saver().steps()

  def state(self):
    """(state, extra, step) of the newest checkpoint, on one device."""
    config = config_file.load(str(self.config))
    one = experiment.Mesh(data=1, fsdp=1)
    template = setup.build(dataclasses.replace(config, mesh=one)).init_state()
    return self._saver().restore(template)

  def records(self) -> dict:
    """What was written, without what a clock or a memory gauge said."""
    return {path.name: _rows(path) for path in self.run.glob("*.jsonl")}

  def export(self) -> bytes:
    """The exported weights."""
    return (self.run / "export" / "model.safetensors").read_bytes()

  def _saver(self) -> checkpoint.Checkpointer:
    return checkpoint.Checkpointer(self.run / "checkpoints", keep=2)


def wait(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
  """Until condition() or the end of the process, for at most 5 minutes."""
  end = time.monotonic() + 300
  while process.poll() is None and not condition():
    if time.monotonic() > end:
      process.kill()
      raise RuntimeError("the run got nowhere in 5 minutes")
    time.sleep(0.001)


def kill(sandbox: Sandbox, moment: str, rng: random.Random) -> None:
  """Starts the run, and kills it at a random moment of a kind.

  Args:
    sandbox: where.
    moment: "start" (before the first step), "step" (after 1 to 5 more steps)
      or "save" (the same, while a checkpoint is being written).
    rng: draws the moment.

  Raises:
    RuntimeError: if the run had ended before.
  """
  goal = sandbox.lines() + rng.randint(-1, 3)
  reached = {
    "start": lambda: (sandbox.run / "config.json").exists(),
    "step": lambda: sandbox.lines() > goal,
    "save": lambda: sandbox.lines() > goal and sandbox.saving(),
  }
  process = sandbox.start()
  try:
    wait(process, reached[moment])
    time.sleep(rng.uniform(0.0, 0.02 if moment == "save" else 0.3))
  finally:
    process.kill()
    code = process.wait()
    process.stderr.close()
  if code != -signal.SIGKILL:
    raise RuntimeError(f"{moment}: the run had ended before, with {code}")


def differences(one: Sandbox, other: Sandbox) -> list[str]:
  """Names of what two finished runs left that is not the same; [] is well."""
  (state, extra, step), (other_state, other_extra, other_step) = (
    one.state(),
    other.state(),
  )
  same = {
    "last step": step == other_step,
    "parameters": _equal(state.params, other_state.params),
    "state": _equal(state, other_state),
    "place in the data": extra == other_extra,
    "lines of every step": one.records() == other.records(),
    "exported weights": one.export() == other.export(),
  }
  return [name for name, equal in same.items() if not equal]


def _equal(one, other) -> bool:
  """Whether two trees have the same bits."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(
    np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
  )


def _rows(path: pathlib.Path) -> list[dict]:
  timed = ("time/", "memory/", "tokens_per_second", "seconds")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)} for row in rows
  ]


def attack(folder: pathlib.Path, *, kills: int, seed: int) -> list[str]:
  """Trains twice, once with kills; what differs at the end."""
  rng, steps = random.Random(seed), 5 * kills + 10
  cache = folder / "cache"
  whole = Sandbox(folder / "whole", cache, steps=steps)
  print(f"{steps} steps without interruption ...", flush=True)
  whole.finish()
  killed = Sandbox(folder / "killed", cache, steps=steps)
  for number in range(1, kills + 1):
    moment = rng.choices(MOMENTS, weights=(1, 3, 3))[0]
    kill(killed, moment, rng)
    print(
      f"kill {number:>2}  {moment:<5}  {killed.lines():>3} steps written,"
      f" checkpoints {killed.saved()}"
      f"{', one half-written' if killed.saving() else ''}",
      flush=True,
    )
  killed.finish()
  return differences(whole, killed)


def main() -> int:
  """Parses, attacks, reports."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=20, help="SIGKILLs")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--folder", help="where to run; kept if it is given")
  args = parser.parse_args()
  if args.kills < 1:
    parser.error(f"--kills must be at least 1, got {args.kills}")
  with tempfile.TemporaryDirectory(prefix="kill_runs_") as scratch:
    folder = pathlib.Path(args.folder or scratch)
    folder.mkdir(parents=True, exist_ok=True)
    found = attack(folder.absolute(), kills=args.kills, seed=args.seed)
  print(
    f"{args.kills} kills: "
    + (f"DIFFERENT: {', '.join(found)}" if found else "bitwise equal")
  )
  return bool(found)


if __name__ == "__main__":
  sys.exit(main())
