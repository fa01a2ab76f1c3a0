"""Contract 6: killed anywhere, a resumed run is bitwise the uninterrupted one.

The runs are processes of the real command. They share a cache of compiled
programs, so a restart costs its imports.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest

from jaxrl_llm.training import checkpoint, config_file, setup

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 28
CONFIG = f"""
import pathlib
from jaxrl_llm.training import experiment

SLOW = pathlib.Path(__file__).with_name("slow.py")

def get_config():
  return experiment.Experiment(
    name="run",
    runs=str(pathlib.Path(__file__).parent),
    steps={STEPS},
    prompts_per_step=2,
    group_size=4,
    prompt_length=12,
    completion_length=4,
    mini_batches=2,
    model=experiment.Model(name="tiny"),
    data=experiment.Data(source="addition", digits=1, few_shot=False, size=30),
    reward=("format:[0-9]", f"{{SLOW}}:slow"),
    optimizer=experiment.Optimizer(learning_rate=5e-3, schedule="cosine"),
    evaluation=experiment.Evaluation(every=7, examples=4, batch=4),
    checkpoint=experiment.Checkpoint(every=3),
    logging=experiment.Logging(tensorboard=False),
  )
"""
SLOW = """
import time

def slow(prompts, completions, answers):
  time.sleep(0.02)  # makes a step long enough to be hit
  return [0.1 * len(text.strip()) for text in completions]
"""


class Sandbox:
  """A folder with the config, and processes that train there."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
    folder.mkdir()
    (folder / "kill.py").write_text(CONFIG)
    (folder / "slow.py").write_text(SLOW)
    self.config = folder / "kill.py"
    self.run = folder / "run"
    self._env = os.environ | {
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

  def start(self) -> subprocess.Popen:
    args = ["--resume"] if (self.run / "config.json").exists() else []
    return subprocess.Popen(
      [sys.executable, "-m", "jaxrl_llm", "train", str(self.config), *args],
      env=self._env,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def finish(self):
    process = self.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err

  def lines(self) -> int:
    path = self.run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def saving(self) -> bool:
    return any((self.run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

  def saved(self) -> list[int]:
    names = [path.name for path in (self.run / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())

  def state(self):
    """Everything that was saved last."""
    template = setup.build(config_file.load(str(self.config))).init_state()
    with checkpoint.Checkpointer(self.run / "checkpoints", keep=2) as saver:
      return saver.restore(template)

  def records(self) -> dict:
    """What was written, without what a clock or a memory gauge said."""
    return {path.name: _rows(path) for path in self.run.glob("*.jsonl")}


def _rows(path: pathlib.Path) -> list[dict]:
  timed = ("time/", "memory/", "tokens_per_second", "seconds")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)} for row in rows
  ]


def _wait(process: subprocess.Popen, condition) -> None:
  """Until condition() or the end of the process, for at most two minutes."""
  end = time.monotonic() + 120
  while process.poll() is None and not condition():
    assert time.monotonic() < end, "the run got nowhere"
    time.sleep(0.001)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  """A run that nobody interrupted."""
  sandbox = Sandbox(tmp_path_factory.mktemp("whole") / "a", cache)
  sandbox.finish()
  return sandbox


def _assert_same_run(one: Sandbox, other: Sandbox):
  (state, extra, step), (other_state, other_extra, _) = (
    one.state(),
    other.state(),
  )
  assert step == STEPS and int(state.step) == STEPS
  chex.assert_trees_all_equal(
    jax.device_get(state), jax.device_get(other_state)
  )
  assert extra == other_extra
  assert one.records() == other.records()
  assert [row["step"] for row in one.records()["metrics.jsonl"]] == list(
    range(1, STEPS + 1)
  )
  weights = "export/model.safetensors"
  assert (one.run / weights).read_bytes() == (other.run / weights).read_bytes()


def test_killed_at_five_random_moments_it_ends_with_the_same_bits(
  whole, cache, tmp_path
):
  rng = random.Random(0)
  sandbox = Sandbox(tmp_path / "b", cache)
  for moment in ("start", "step", "save", "step", "save"):
    process = sandbox.start()
    lines = sandbox.lines() - 3 + rng.randint(3, 6)
    reached = {
      "start": lambda: (sandbox.run / "config.json").exists(),
      "step": lambda goal=lines: sandbox.lines() > goal,
      "save": lambda goal=lines: sandbox.lines() > goal and sandbox.saving(),
    }[moment]
    _wait(process, reached)
    time.sleep(rng.uniform(0.0, 0.02 if moment == "save" else 0.3))
    process.kill()
    assert process.wait() == -signal.SIGKILL, f"{moment}: it had ended before"
    process.stderr.close()
  assert 0 < sandbox.lines() < STEPS
  sandbox.finish()
  _assert_same_run(whole, sandbox)


def test_a_signal_saves_first_and_the_run_goes_on_to_the_same_bits(
  whole, cache, tmp_path
):
  sandbox = Sandbox(tmp_path / "c", cache)
  for number, after in ((signal.SIGTERM, 4), (signal.SIGINT, 16)):
    process = sandbox.start()
    _wait(process, lambda after=after: sandbox.lines() >= after)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].startswith(f"jaxrl: stopped by {number.name}")
    assert "--resume goes on" in err
    assert sandbox.saved()[-1] == sandbox.lines()
  sandbox.finish()
  _assert_same_run(whole, sandbox)
