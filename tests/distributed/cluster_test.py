"""Which processes share a run, before JAX is asked."""

import glob

import pytest

from jaxrl_llm.distributed import cluster


@pytest.mark.parametrize(
  "args, count",
  [
    ([], 0),
    (["--steps", "3"], 0),
    (["--processes.count", "4"], 4),
    (["--processes.count=4"], 4),
    (["--processes.count=4", "--processes.count", "1"], 1),
    (["--processes.count"], 0),
    (["--processes.count", "four"], 0),  # for tyro to complain about
  ],
)
def test_the_count_that_was_typed(args, count):
  assert cluster.typed_count(args) == count


@pytest.mark.parametrize(
  "count, environment, several",
  [
    (0, {}, False),
    (1, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, False),
    (2, {}, True),
    (0, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, True),
    (0, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
    (0, {"SLURM_NTASKS": "8"}, False),  # an allocation, but no task of srun
    (0, {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
  ],
)
def test_whether_there_are_others(monkeypatch, count, environment, several):
  monkeypatch.setattr(glob, "glob", lambda pattern: [])
  assert cluster.several(count, environment) is several


def test_a_machine_with_tpus_asks_its_metadata(monkeypatch):
  monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
  assert cluster.several(0, {})
  assert not cluster.several(1, {})
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
  assert not cluster.several(0, {})


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"count": -1}, "processes.count must be 0"),
    ({"count": 2, "index": 2}, "processes.index must be from 0 to"),
    ({"coordinator": "host"}, "must be HOST:PORT"),
    ({"coordinator": ":80"}, "must be HOST:PORT"),
    ({"coordinator": "host:80"}, "go together"),
    ({"count": 2}, "go together"),
    ({"index": 0}, "go together"),
  ],
)
def test_fields_that_cannot_be(fields, said):
  with pytest.raises(ValueError, match=said):
    cluster.check(cluster.Processes(**fields))


def test_fields_that_can():
  for fields in (
    {},
    {"count": 1},
    {"coordinator": "10.0.0.1:8476", "count": 2, "index": 1},
    {"coordinator": "[::1]:8476", "count": 1, "index": 0},
  ):
    cluster.check(cluster.Processes(**fields))
