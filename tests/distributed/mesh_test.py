"""Meshes: who shares what, and what is refused in one line."""

import jax
import numpy as np
import pytest

from jaxrl_llm.distributed import mesh as meshes
from pallas_kernels import aot, blocks


def shape(*args, **kwargs):
  mesh = meshes.make_mesh(*args, **kwargs)
  return mesh and tuple(mesh.shape.values())


def test_rows_take_all_devices_that_divide_the_prompts():
  devices = jax.devices()[:4]
  assert shape(8, devices=devices) == (4, 1, 1)
  assert shape(6, devices=devices) == (3, 1, 1)
  assert shape(7, devices=devices) is None


def test_axes_that_are_given_are_kept_and_another_takes_the_rest():
  devices = jax.devices()[:4]
  assert shape(8, fsdp=2, devices=devices) == (2, 2, 1)
  assert shape(8, tensor=2, devices=devices) == (2, 1, 2)
  assert shape(8, data=1, fsdp=2, tensor=2, devices=devices) == (1, 2, 2)
  assert shape(8, data=1, devices=devices) == (1, 4, 1)


def test_parameters_are_cut_as_little_as_the_memory_allows(monkeypatch):
  monkeypatch.setattr(meshes, "device_bytes", lambda device: 100)
  devices = jax.devices()[:4]
  assert shape(8, state_bytes=60, devices=devices) == (4, 1, 1)
  assert shape(8, state_bytes=130, devices=devices) == (2, 2, 1)
  assert shape(8, state_bytes=9999, devices=devices) == (1, 4, 1)


def test_the_host_memory_of_a_cpu_is_not_a_device_memory():
  assert meshes.device_bytes(jax.devices("cpu")[0]) == 0


@pytest.mark.skipif(not aot.available(), reason="libtpu is not installed")
def test_an_absent_chip_has_the_memory_of_its_kind():
  devices = aot.devices("v5e:2x2")
  assert meshes.device_bytes(devices[0]) == blocks.CHIPS["v5e"].hbm_bytes
  assert shape(8, state_bytes=40 * 2**30, devices=devices) == (1, 4, 1)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"data": -1}, "mesh.data must be 0"),
    ({"fsdp": -2}, "mesh.fsdp must be 0"),
    ({"tensor": 0}, "mesh.tensor must be at least 1"),
    ({"tensor": 8}, "does not go with 4 devices"),
    ({"data": 3, "fsdp": 1}, "must divide prompts_per_step"),
    ({"fsdp": 3}, "prompts_per_step=8"),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(sizes, message):
  with pytest.raises(ValueError, match=message) as error:
    meshes.make_mesh(8, devices=jax.devices()[:4], **sizes)
  assert "\n" not in str(error.value)


def test_rows_are_cut_and_odd_ones_are_whole():
  mesh = meshes.make_mesh(8, fsdp=2, devices=jax.devices()[:4])
  even, odd, scalar = meshes.place_rows(
    (np.zeros((8, 3)), np.zeros((6, 3)), np.zeros(())), mesh
  )
  assert even.addressable_shards[0].data.shape == (2, 3)
  assert odd.addressable_shards[0].data.shape == (6, 3)
  assert scalar.sharding.is_fully_replicated


def test_rows_are_whole_along_the_tensor_axis():
  mesh = meshes.make_mesh(8, tensor=2, devices=jax.devices()[:4])
  rows = meshes.place_rows(np.zeros((8, 3)), mesh)
  assert meshes.row_shares(mesh) == 2
  assert rows.addressable_shards[0].data.shape == (4, 3)
