"""What processes do together, in a process on its own; see also
tests/training/several_processes_test.py, where there are several."""

import os

import jax
import numpy as np
import pytest

from jaxrl_llm.distributed import cluster, processes


@pytest.fixture
def several(monkeypatch):
  """Looks like process 1 of 3; what is gathered is seen, not sent."""
  sent = []
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(
    processes, "gather", lambda value: sent.append(value) or [value] * 3
  )
  return sent


def test_alone_all_is_done_here():
  assert processes.is_main() and processes.count() == 1
  assert processes.gather({"a": 1}) == [{"a": 1}]
  assert processes.divided(lambda rows: list(range(5))[rows], 5) == [
    [0, 1, 2, 3, 4]
  ]
  assert processes.on_main(lambda: 7) == 7


def test_shares_make_up_the_whole(monkeypatch, several):
  for size in (0, 1, 2, 3, 7, 12):
    things, shares = list(range(size)), []
    for index in range(3):
      monkeypatch.setattr(jax, "process_index", lambda index=index: index)
      shares += processes.divided(things.__getitem__, size)[0]
    assert shares == things


def test_an_error_of_the_main_process_is_everyones(monkeypatch, several):
  def fails():
    raise ValueError("runs/a already holds a run")

  monkeypatch.setattr(jax, "process_index", lambda: 0)
  with pytest.raises(ValueError, match="already holds a run"):
    processes.on_main(fails)
  # It was sent before it was raised, so that no one waits for it in vain.
  (outcome,) = several
  assert outcome[0] is None and str(outcome[1]) == "runs/a already holds a run"


def test_host_arrays_go_to_devices_and_back():
  mesh = jax.make_mesh((4,), ("data",))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  host = np.arange(8.0, dtype=np.float32).reshape(4, 2)
  there = processes.put(host, place)
  assert there.sharding == place
  np.testing.assert_array_equal(processes.to_host({"a": there})["a"], host)


@pytest.mark.parametrize(
  "error, lost",
  [
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), True),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
    (ValueError("steps must be at least 1, got 0."), False),
  ],
)
def test_which_errors_mean_that_a_process_is_gone(monkeypatch, error, lost):
  assert processes.lost(error) is None  # there is no other
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  assert (processes.lost(error) is not None) == lost


def test_fake_devices_have_threads_for_several_programs(monkeypatch):
  monkeypatch.delenv("PJRT_NPROC", raising=False)
  assert jax.config.jax_num_cpu_devices == 4  # conftest.py
  processes.initialize(cluster.Processes(count=1))
  assert os.environ["PJRT_NPROC"] == "16"
  monkeypatch.setenv("PJRT_NPROC", "3")
  processes.initialize(cluster.Processes(count=1))
  assert os.environ["PJRT_NPROC"] == "3"
