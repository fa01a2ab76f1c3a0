"""Contract 5 on meshes: the same rollouts to the token, the same update."""

import json
import pathlib
import subprocess
import sys

import pytest

MESHES = {
  "data=2": (2, 1.0),
  "data=4": (4, 1.0),
  "data=8": (8, 1.0),
  "fsdp=8": (8, 1 / 8),
  "tensor=2": (2, 1 / 2),
  "fsdp=2 tensor=2": (4, 1 / 4),
  "data=2 fsdp=2 tensor=2": (8, 1 / 4),
  "fsdp=4 tensor=2 rank=4": (8, 1 / 2),
}


@pytest.fixture(scope="module")
def seen():
  worker = pathlib.Path(__file__).with_name("mesh_worker.py")
  done = subprocess.run(
    [sys.executable, str(worker), *MESHES],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "Involuntary full rematerialization" not in done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  return {row["mesh"]: row for row in rows}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_samples_the_same_tokens_and_learns_the_same(seen, mesh):
  row = seen[mesh]
  assert row["tokens"]
  assert row["error"] < 1e-5
  assert row["gap"] < 1e-4


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_share_of_a_matrix(seen, mesh):
  devices, share = MESHES[mesh]
  assert seen[mesh]["devices"] == devices
  assert seen[mesh]["share"] == share
