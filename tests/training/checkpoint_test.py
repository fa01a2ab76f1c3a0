import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import checkpoint


class Adam(NamedTuple):
  count: jax.Array
  mu: dict


def tree(value=1.0):
  return {
    "params": {"embed": jnp.full((3, 2), value), "a.b": jnp.arange(4)},
    "opt": (Adam(jnp.int32(7), {"embed": jnp.full((3, 2), 2 * value)}), ()),
    "half": jnp.array([1.5, jnp.nan, -0.0, jnp.inf], jnp.bfloat16),
    "key": jax.random.key_data(jax.random.key(3)),
    "flags": jnp.array([True, False]),
    "empty": jnp.zeros((0, 5)),
    "none": None,
  }


def bits(x):
  return np.asarray(x).tobytes()


def test_what_comes_back_is_bitwise_what_went_in(tmp_path):
  arrays, extra = tree(0.1), {"data": {"epoch": 2}, "texts": ["é\n"]}
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    saver.save(5, arrays, extra)
  with checkpoint.Checkpointer(tmp_path, keep=2) as loader:
    got, got_extra, step = loader.restore(jax.tree.map(jnp.zeros_like, arrays))
  assert step == 5 and got_extra == extra
  assert jax.tree.structure(got) == jax.tree.structure(arrays)
  for a, b in zip(jax.tree.leaves(arrays), jax.tree.leaves(got), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def test_arrays_of_any_shape_may_be_in_the_extra(tmp_path):
  loose = {
    "ids": np.arange(5),
    "texts": ["é", None, {"masks": np.array([[True, False]])}],
    "rewards": np.array([np.nan, -0.0, 1.5], np.float32),
  }
  with checkpoint.Checkpointer(tmp_path, keep=3) as saver:
    saver.save(1, {"w": jnp.ones(2)}, {"plan": loose, "step": 1})
    saver.save(2, {"w": jnp.ones(2)}, {"plan": {}})
    saver.save(3, {"w": jnp.ones(2)}, {"plan": {"ids": np.zeros((2, 9))}})
  with checkpoint.Checkpointer(tmp_path, keep=3) as loader:
    template = {"w": jnp.zeros(2)}
    extras = [loader.restore(template, step)[1] for step in (1, 2, 3)]
  assert extras[1] == {"plan": {}}
  assert extras[2]["plan"]["ids"].shape == (2, 9)
  got = extras[0]["plan"]
  assert extras[0]["step"] == 1 and got["texts"][:2] == ["é", None]
  for ours, theirs in (
    (loose["ids"], got["ids"]),
    (loose["rewards"], got["rewards"]),
    (loose["texts"][2]["masks"], got["texts"][2]["masks"]),
  ):
    assert type(theirs) is np.ndarray and ours.dtype == theirs.dtype
    assert bits(ours) == bits(theirs)


def test_shapes_alone_are_template_enough_and_shardings_are_kept(tmp_path):
  mesh = jax.make_mesh((4,), ("x",))
  sharding = jax.NamedSharding(mesh, jax.P("x"))
  arrays = {"w": jax.device_put(jnp.arange(8.0), sharding)}
  template = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    saver.save(1, arrays)
    got, extra, _ = saver.restore(template)
    one, _, _ = saver.restore({"w": jnp.zeros(8)})
  assert got["w"].sharding == sharding and extra == {}
  assert len(one["w"].sharding.device_set) == 1
  assert bits(got["w"]) == bits(one["w"]) == bits(arrays["w"])


def test_only_the_newest_are_kept_and_any_kept_one_can_be_read(tmp_path):
  with checkpoint.Checkpointer(tmp_path / "new", keep=2) as saver:
    assert saver.latest_step() is None
    for step in (1, 2, 3):
      saver.save(step, {"w": jnp.full(2, step)}, {"step": step})
    saver.save(3, {"w": jnp.zeros(2)})  # there already: stays as it is
    saver.wait()
    assert saver.steps() == [2, 3] and saver.latest_step() == 3
    got, extra, step = saver.restore({"w": jnp.zeros(2, jnp.int32)}, step=2)
    assert (step, extra["step"], int(got["w"][0])) == (2, 2, 2)
    got, _, _ = saver.restore({"w": jnp.zeros(2, jnp.int32)})
    assert int(got["w"][0]) == 3
    with pytest.raises(FileNotFoundError, match="step 1 in .*there are 2, 3"):
      saver.restore({"w": jnp.zeros(2)}, step=1)


def test_nothing_to_resume_is_one_line_that_names_the_folder(tmp_path):
  loader = checkpoint.Checkpointer(tmp_path / "none", keep=1)
  with pytest.raises(FileNotFoundError, match="nothing to resume in .*none"):
    loader.restore({"w": jnp.zeros(2)})
  assert not (tmp_path / "none").exists()
  with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
    checkpoint.Checkpointer(tmp_path, keep=0)


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ({"w": jnp.zeros(3)}, r"w is float32\[2\] there and float32\[3\] now"),
    ({"w": jnp.zeros(2, jnp.int32)}, r"float32\[2\] there and int32\[2\]"),
    ({"w": jnp.zeros(2), "b": jnp.zeros(1)}, "b is missing there"),
    ({}, "and missing now"),
  ],
)
def test_another_configuration_is_refused_in_one_line(
  tmp_path, template, message
):
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    saver.save(1, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=message) as error:
      saver.restore(template)
  assert "\n" not in str(error.value)


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from jaxrl_llm.training import checkpoint
saver = checkpoint.Checkpointer(sys.argv[1], keep=2)
for step in range(1, 10_000):
  arrays = {str(i): jnp.full((64, 1024), step) for i in range(24)}
  saver.save(step, arrays, {"step": step})
  saver.wait()
  print(step, flush=True)
"""


@pytest.mark.parametrize("moment", ["a half-written step is there", "any"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_older_one(tmp_path, moment):
  folder = tmp_path / "checkpoints"
  process = subprocess.Popen(
    [sys.executable, "-c", SAVE_FOREVER, str(folder)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  done = [int(process.stdout.readline()) for _ in range(2)][-1]
  if moment == "any":
    time.sleep(0.07)
  else:
    deadline = time.monotonic() + 20
    while not list(folder.glob("*tmp*")) and time.monotonic() < deadline:
      pass
  os.kill(process.pid, signal.SIGKILL)
  rest, noise = process.communicate()
  printed = [int(line) for line in rest.split() if line.strip()]
  half = list(folder.glob("*tmp*"))
  if moment != "any":
    assert half, "the kill came too late to catch a save"
  template = {str(i): jnp.zeros((64, 1024), jnp.int32) for i in range(24)}
  with checkpoint.Checkpointer(folder, keep=2) as loader:
    arrays, extra, step = loader.restore(template)
    assert list(folder.glob("*tmp*")) == half  # reading sweeps nothing
    loader.save(step + 1, arrays, {"step": step + 1})  # and it goes on
    loader.wait()
    assert loader.latest_step() == step + 1
  assert step >= max([done, *printed]) and extra == {"step": step}
  for leaf in arrays.values():
    np.testing.assert_array_equal(leaf, step)
  assert not list(folder.glob("*tmp*"))
  assert noise == "", json.dumps(noise)  # saving is silent
