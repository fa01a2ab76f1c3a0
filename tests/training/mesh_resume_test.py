"""Saved on eight devices, resumed on four and on one: the same curves."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

MESHES = {"fsdp=2 tensor=2": 4, "fsdp=1": 1}
CLOCKS = ("time/", "memory/", "tokens_per_second")
LAYOUT = ("sync/",)  # bytes that a mesh moves
# Programs are compiled fast rather than well, as in conftest.py.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
  worker = pathlib.Path(__file__).with_name("mesh_resume_worker.py")
  runs = tmp_path_factory.mktemp("runs")
  done = subprocess.run(
    [sys.executable, str(worker), str(runs), *MESHES],
    capture_output=True,
    text=True,
    env=os.environ | {"XLA_FLAGS": FAST},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
  rows = [json.loads(line) for line in lines]
  return dict(zip(["whole", *MESHES], rows, strict=True))


@pytest.mark.parametrize("mesh", MESHES)
def test_what_is_restored_is_the_same_to_the_bit(seen, mesh):
  assert seen["whole"]["devices"] == 8
  assert seen[mesh]["devices"] == MESHES[mesh]
  assert seen[mesh]["same_bits"]


@pytest.mark.parametrize("mesh", MESHES)
def test_the_curves_go_on_as_on_eight_devices(seen, mesh):
  whole, resumed = seen["whole"]["metrics"], seen[mesh]["metrics"]
  assert [row["step"] for row in resumed] == [1, 2, 3, 4]
  assert whole[:2] == resumed[:2] and whole[2]["grad_norm"] > 0
  for one, other in zip(whole[2:], resumed[2:], strict=True):
    names = [name for name in one if not name.startswith(CLOCKS + LAYOUT)]
    assert {"loss", "reward", "entropy", "grad_norm"} <= set(names)
    for name in names:
      np.testing.assert_allclose(other[name], one[name], 1e-5, 1e-5, name)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_texts_are_the_same_to_the_letter(seen, mesh):
  assert seen[mesh]["texts"] == seen["whole"]["texts"]
  assert len({row["completion"] for row in seen[mesh]["texts"]}) > 4
