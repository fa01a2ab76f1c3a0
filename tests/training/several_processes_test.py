"""Runs in several real processes, which meet over this machine's network.

Those of the same devices leave the same bits, whatever process they are in and
whatever was killed on the way.
"""

import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrl_llm.distributed import guard

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import kill_runs  # noqa: E402

STEPS = 16
# A prompt for each of four devices, scored without further processes.
OPTIONS = "--prompts-per-step=4", "--mini-batches=1", "--reward-workers=0"


class Job:
  """Processes of one run, and the files that they write to."""

  def __init__(self, sandbox: kill_runs.Sandbox, count: int):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    self.processes = [
      sandbox.start(
        *OPTIONS,
        f"--processes.coordinator=127.0.0.1:{port}",
        f"--processes.count={count}",
        f"--processes.index={index}",
      )
      for index in range(count)
    ]

  def after(self, sandbox: kill_runs.Sandbox, lines: int):
    """Waits for so many steps; returns itself."""
    kill_runs.wait(self.processes[0], lambda: sandbox.lines() >= lines)
    return self

  def ends(self, timeout: float) -> list[tuple[int, str]]:
    """Exit codes and what was said, of all processes."""
    end = time.monotonic() + timeout
    try:
      found = []
      for process in self.processes:
        _, err = process.communicate(timeout=max(0, end - time.monotonic()))
        found.append((process.returncode, err))
      return found
    finally:
      for process in self.processes:
        process.kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
  """One process with two devices that nobody interrupted."""
  folder = tmp_path_factory.mktemp("alone") / "a"
  sandbox = kill_runs.Sandbox(folder, cache, steps=STEPS)
  sandbox.finish(*OPTIONS, devices=2)
  return sandbox


def _saved_line(text: str) -> int:
  """The step after which a process says that it stopped."""
  return int(re.search(r"stopped by SIGTERM after step (\d+)", text)[1])


def test_two_processes_stopped_killed_and_resumed_leave_the_bits_of_one(
  alone, cache, tmp_path
):
  sandbox = kill_runs.Sandbox(tmp_path / "b", cache, steps=STEPS)
  job = Job(sandbox, 2).after(sandbox, 2)
  job.processes[1].send_signal(signal.SIGTERM)
  ends = job.ends(60)
  assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2
  steps = {_saved_line(err) for _, err in ends}
  assert steps == {sandbox.lines()} == {sandbox.saved()[-1]}

  job = Job(sandbox, 2).after(sandbox, sandbox.lines() + 4)
  job.processes[1].send_signal(signal.SIGKILL)
  (code, err), _ = job.ends(60)
  assert code == guard.LOST, err
  assert err.splitlines()[-1] == f"jaxrl: {guard.lost_line()}"

  assert [code for code, _ in Job(sandbox, 2).ends(600)] == [0, 0]
  assert kill_runs.differences(alone, sandbox) == []


def test_four_processes_lose_the_first_and_one_process_goes_on(
  alone, cache, tmp_path
):
  sandbox = kill_runs.Sandbox(tmp_path / "c", cache, steps=STEPS)
  job = Job(sandbox, 4).after(sandbox, 5)
  job.processes[0].send_signal(signal.SIGKILL)
  for code, err in job.ends(60)[1:]:
    assert code == guard.LOST, err
    assert "of this run was lost" in err.splitlines()[-1]
  sandbox.finish(*OPTIONS)
  ours, theirs = (one.records() for one in (sandbox, alone))
  assert ours["samples.jsonl"] == theirs["samples.jsonl"]
  for one, other in zip(
    ours["metrics.jsonl"], theirs["metrics.jsonl"], strict=True
  ):
    assert one.get("sync/checksum_sampler") == one.get("sync/checksum_trainer")
    # Other devices: other bytes travel, and the last bits differ.
    for name in (name for name in one if not name.startswith("sync/")):
      np.testing.assert_allclose(
        one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name
      )


@pytest.mark.parametrize(
  "options, said",
  [
    (["--processes.count=2"], "go together, got '', 2 and -1"),
    (["--processes.index=0"], "go together, got '', 0 and 0"),
    (
      [
        "--processes.coordinator=nowhere",
        "--processes.count=2",
        "--processes.index=0",
      ],
      "must be HOST:PORT, for example 10.0.0.1:8476; got 'nowhere'",
    ),
    (
      [
        "--processes.coordinator=127.0.0.1:1",
        "--processes.count=2",
        "--processes.index=2",
      ],
      "processes.index must be from 0 to processes.count - 1 = 1, got 2",
    ),
  ],
)
def test_flags_that_do_not_go_together(options, said):
  result = subprocess.run(
    [sys.executable, "-m", "jaxrl_llm", "train", "tiny_addition", *options],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith("jaxrl: processes.") and said in line
