"""Contract 6: killed anywhere, a resumed run is bitwise the uninterrupted one.

The runs are processes of the real command; scripts/kill_runs.py does the same
with more kills.
"""

import pathlib
import random
import signal
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import kill_runs  # noqa: E402

STEPS = 28


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  """A run that nobody interrupted."""
  folder = tmp_path_factory.mktemp("whole") / "a"
  sandbox = kill_runs.Sandbox(folder, cache, steps=STEPS)
  sandbox.finish()
  return sandbox


def _assert_same_run(one, other):
  assert kill_runs.differences(one, other) == []
  state, _, step = one.state()
  assert step == STEPS and int(state.step) == STEPS
  assert [row["step"] for row in one.records()["metrics.jsonl"]] == list(
    range(1, STEPS + 1)
  )


def test_killed_at_five_random_moments_it_ends_with_the_same_bits(
  whole, cache, tmp_path
):
  rng = random.Random(0)
  sandbox = kill_runs.Sandbox(tmp_path / "b", cache, steps=STEPS)
  for moment in ("start", "step", "save", "step", "save"):
    kill_runs.kill(sandbox, moment, rng)
  assert 0 < sandbox.lines() < STEPS
  sandbox.finish()
  _assert_same_run(whole, sandbox)


def test_after_signals_and_damage_it_goes_on_to_the_same_bits(
  whole, cache, tmp_path
):
  sandbox = kill_runs.Sandbox(tmp_path / "c", cache, steps=STEPS)
  _signal_saves_first(sandbox, signal.SIGTERM, after=4)
  _second_signal_ends_at_once(sandbox, after=10)
  _signal_saves_first(sandbox, signal.SIGINT, after=16)
  newest = sandbox.saved()[-1]
  files = (sandbox.run / "checkpoints" / f"{newest}").rglob("*")
  file = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  err = sandbox.finish()
  assert f"checkpoint of step {newest} in" in err and "is damaged: " in err
  assert (sandbox.run / "checkpoints" / f"{newest}.damaged").is_dir()
  _assert_same_run(whole, sandbox)


def _signal_saves_first(sandbox, number, *, after):
  process = sandbox.start()
  kill_runs.wait(process, lambda: sandbox.lines() >= after)
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert err.splitlines()[-1].startswith(f"jaxrl: stopped by {number.name}")
  assert "--resume goes on" in err
  assert sandbox.saved()[-1] == sandbox.lines()


def _second_signal_ends_at_once(sandbox, *, after):
  process = sandbox.start()
  kill_runs.wait(process, lambda: sandbox.lines() >= after)
  sandbox.hold.touch()
  time.sleep(0.5)  # the step under way ends, the next one hangs
  process.send_signal(signal.SIGINT)
  time.sleep(1.2)  # a launcher's echo of the first would come sooner
  kill_runs.wait(process, lambda: not sandbox.saving())
  assert process.poll() is None
  saved, lines = sandbox.saved(), sandbox.lines()
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=30)  # less than reward_timeout
  sandbox.hold.unlink()
  assert process.returncode == 130 and err == "jaxrl: stopped.\n"
  assert sandbox.saved() == saved and sandbox.lines() == lines
