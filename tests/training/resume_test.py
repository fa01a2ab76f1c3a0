"""Contract 6: killed anywhere, a resumed run is bitwise the uninterrupted one.

The runs are processes of the real command; scripts/kill_runs.py does the same
with more kills.
"""

import pathlib
import random
import signal
import sys

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


def test_a_signal_saves_first_and_the_run_goes_on_to_the_same_bits(
  whole, cache, tmp_path
):
  sandbox = kill_runs.Sandbox(tmp_path / "c", cache, steps=STEPS)
  for number, after in ((signal.SIGTERM, 4), (signal.SIGINT, 16)):
    process = sandbox.start()
    kill_runs.wait(process, lambda after=after: sandbox.lines() >= after)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].startswith(f"jaxrl: stopped by {number.name}")
    assert "--resume goes on" in err
    assert sandbox.saved()[-1] == sandbox.lines()
  sandbox.finish()
  _assert_same_run(whole, sandbox)
