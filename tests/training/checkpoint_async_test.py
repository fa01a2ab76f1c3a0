"""Saves go on behind the run's back: what they may and may not do there."""

import asyncio
import re
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint._src.path import atomicity
import pytest

from jaxrl_llm.training import checkpoint


def _normal(seed, size=1 << 19):
  return jax.random.normal(jax.random.key(seed), (size // 512, 512))


@pytest.fixture
def gate(monkeypatch):
  """Lets nothing be written, not even a folder be made, until it is opened."""
  opened = threading.Event()
  create = atomicity.AtomicRenameTemporaryPath.create

  async def held(self, *args, **kwargs):
    assert await asyncio.to_thread(opened.wait, 20)
    return await create(self, *args, **kwargs)

  monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "create", held)
  yield opened
  opened.set()


@pytest.mark.parametrize("cut", [False, True])
def test_the_next_step_may_overwrite_what_is_being_saved(tmp_path, gate, cut):
  def place(array):
    if not cut:
      return array
    mesh = jax.make_mesh((4,), ("x",))
    return jax.device_put(array, jax.NamedSharding(mesh, jax.P("x")))

  step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  arrays = {str(i): place(_normal(i)) for i in range(4)}
  want = {name: np.array(leaf).tobytes() for name, leaf in arrays.items()}
  loose, extra = np.arange(5), {"list": [1, 2]}
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    saver.save(1, arrays, extra | {"loose": loose})
    for _ in range(3):
      arrays = jax.tree.map(step, arrays)
    jax.block_until_ready(arrays)
    loose[:] = -1
    extra["list"].append(3)
    assert not list(tmp_path.iterdir())  # the run has gone on before a write
    gate.set()
    got, got_extra, _ = saver.restore(arrays)
  assert got_extra["list"] == [1, 2]
  assert got_extra["loose"].tolist() == [0, 1, 2, 3, 4]
  for name, leaf in got.items():
    assert np.asarray(leaf).tobytes() == want[name]


def test_closing_waits_and_so_does_the_next_save(tmp_path, gate):
  saver = checkpoint.Checkpointer(tmp_path, keep=2)
  saver.save(1, {"w": jnp.ones(2)})
  threading.Timer(0.2, gate.set).start()
  saver.save(2, {"w": jnp.ones(2)})
  assert 1 in saver.steps()
  saver.close()
  assert saver.steps() == [1, 2]


def test_a_long_wait_is_told_with_bytes_and_seconds(
  tmp_path, gate, monkeypatch
):
  monkeypatch.setattr(checkpoint, "_PATIENCE", 0.05)
  said = []
  with checkpoint.Checkpointer(tmp_path, keep=1, say=said.append) as saver:
    saver.save(7, {"w": _normal(0)})
    threading.Timer(0.3, gate.set).start()
    saver.wait()
  assert "writing the checkpoint of step 7: " in said[0]
  assert re.search(r"of about 2.0 MiB after \d+ s$", said[-1])


@pytest.fixture
def small_files():
  """No file may grow beyond 1 MiB: what a full disk does, without a disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
  yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _wait(saver):
  saver.wait()


def _save_next(saver):
  saver.save(3, {"w": jnp.ones(2)})


def _check(saver):
  while True:
    saver.check()


@pytest.mark.parametrize("notice", [_wait, _save_next, _check])
def test_a_full_disk_is_one_line_and_loses_nothing(
  tmp_path, small_files, notice
):
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    saver.save(1, {"w": jnp.ones(2)})
    saver.save(2, {"w": _normal(0)})
    with pytest.raises(OSError, match="step 2 could not be written") as error:
      notice(saver)
    text = str(error.value)
    assert "\n" not in text and str(tmp_path) in text and len(text) < 600
    assert "needs about 2.0 MiB" in text and "are free" in text
    assert "(steps: 1)" in text and "--resume" in text
    assert "File too large" in text
    assert not list(tmp_path.glob("*tmp*")) and saver.steps() == [1]
    small_files()
    saver.save(2, {"w": _normal(0)})  # there is room again
    assert saver.restore({"w": jnp.zeros((1024, 512))})[2] == 2


def test_an_error_on_its_way_is_not_hidden_by_that_of_a_save(
  tmp_path, small_files
):
  said = []
  with pytest.raises(KeyError, match="the first"):
    with checkpoint.Checkpointer(tmp_path, keep=1, say=said.append) as saver:
      saver.save(1, {"w": _normal(0)})
      raise KeyError("the first")
  assert len(said) == 1 and "step 1 could not be written" in said[0]


def test_an_impatient_person_does_not_wait(tmp_path, gate):
  with pytest.raises(KeyboardInterrupt):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
      saver.save(1, {"w": jnp.ones(2)})
      raise KeyboardInterrupt
  assert saver.steps() == []
  gate.set()
  saver.close()


def test_every_nth_is_kept_for_good(tmp_path):
  with checkpoint.Checkpointer(tmp_path, keep=1, keep_period=4) as saver:
    for step in range(2, 13, 2):
      saver.save(step, {"w": jnp.full(2, step)})
    saver.wait()
    assert saver.steps() == [4, 8, 12]
  with checkpoint.Checkpointer(tmp_path, keep=1, keep_period=4) as saver:
    saver.save(14, {"w": jnp.full(2, 14)})  # the rule holds after a restart
    saver.wait()
    assert saver.steps() == [4, 8, 12, 14]
  with pytest.raises(ValueError, match="must be at least 0, got -1"):
    checkpoint.Checkpointer(tmp_path, keep=1, keep_period=-1)
