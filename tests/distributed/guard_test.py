"""The guard: exit codes, signals, and a line instead of a dump."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxrl_llm.distributed import guard

DUMP = (
  "F1121 client.h:80] Terminating process because the JAX distributed service"
  " detected fatal errors. ... /job:jax_worker/replica:0/task:2, task:0"
)


def _start(body: str) -> subprocess.Popen:
  """A process whose child does `body`."""
  program = f"""
import os, signal, sys, time
from jaxrl_llm.distributed import guard
code = guard.watch()
if code is not None:
  sys.exit(code)
{body}
"""
  return subprocess.Popen(
    [sys.executable, "-c", program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize("code", [0, 1, 3, 143])
def test_the_code_of_the_child_is_its_own(code):
  process = _start(
    f"print('out'); print('err', file=sys.stderr, end='')\nsys.exit({code})"
  )
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out, err) == (code, "out\n", "err")


def test_an_abort_of_the_runtime_is_one_line():
  process = _start(
    f"print({DUMP!r}, file=sys.stderr)\n"
    "print('*** Check failure stack trace: ***', file=sys.stderr, flush=True)\n"
    "os.abort()"
  )
  _, err = process.communicate(timeout=30)
  assert process.returncode == guard.LOST
  (line,) = err.splitlines()
  assert line.startswith("jaxrl: process 0, 2 of this run was lost")


def test_a_line_of_our_own_amid_the_dump_is_heard():
  process = _start(
    f"print({DUMP!r}, file=sys.stderr)\n"
    "print('jaxrl: another process was lost', file=sys.stderr)\n"
    "print('    @ 0x7fb139ca8eec  (unknown)', file=sys.stderr)\n"
    f"sys.exit({guard.LOST})"
  )
  _, err = process.communicate(timeout=30)
  assert process.returncode == guard.LOST
  assert err == "jaxrl: another process was lost\n"


def test_another_abort_keeps_its_words():
  process = _start("print('why', file=sys.stderr, flush=True); os.abort()")
  _, err = process.communicate(timeout=30)
  assert process.returncode == 128 + signal.SIGABRT
  assert err == "why\n"


def test_what_gloo_tells_everyone_is_left_out():
  process = _start(
    "print('[Gloo] Rank 0 is connected to 1 peer ranks.')\nprint('step 1')"
  )
  assert process.communicate(timeout=30) == ("step 1\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_child_once(number):
  process = _start(
    f"""
heard = []
signal.signal({int(number)}, lambda *_: heard.append(1))
print('ready', flush=True)
end = time.monotonic() + 20
while not heard and time.monotonic() < end:
  time.sleep(0.01)
time.sleep(0.3)
print(len(heard))
"""
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  out, _ = process.communicate(timeout=30)
  assert (process.returncode, out) == (0, "1\n")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_child_dies_with_its_parent():
  process = _start("print(os.getpid(), flush=True); time.sleep(60)")
  child = int(process.stdout.readline())
  process.kill()
  process.wait()
  end = time.monotonic() + 20
  while time.monotonic() < end and _runs(child):
    time.sleep(0.01)
  assert not _runs(child)


def _runs(pid: int) -> bool:
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_the_line_names_whom_the_runtime_names():
  assert guard.lost_line().startswith("another process of this run was lost")
  assert "--resume" in guard.lost_line(b"task:7")
  assert guard.lost_line(b"task:7 task:7").startswith("process 7 of this run")
  assert os.linesep not in guard.lost_line()
