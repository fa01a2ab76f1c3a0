"""A damaged checkpoint is told about, and the one before it is used."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import checkpoint


def _tree(step):
  # Random bits, so that they are stored as they are and not compressed away.
  return {
    "w": jax.random.normal(jax.random.key(step), (96, 64)),
    "count": jnp.int32(step),
  }


TEMPLATE = {"w": jnp.zeros((96, 64)), "count": jnp.int32(0)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with steps 1, 2 and 3, of which nobody changes anything."""
  folder = tmp_path_factory.mktemp("whole") / "checkpoints"
  with checkpoint.Checkpointer(folder, keep=3) as saver:
    for step in (1, 2, 3):
      extra = {"step": step, "texts": ["a" * 40], "ids": np.arange(9)}
      saver.save(step, _tree(step), extra)
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def _files(folder, step):
  return [p for p in sorted((folder / f"{step}").rglob("*")) if p.is_file()]


def _largest(folder, step):
  return max(_files(folder, step), key=lambda path: path.stat().st_size)


def _garble(path):
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle] ^= 1
  path.write_bytes(data)


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def _page(folder, step):
  return folder / f"{step}" / "contents" / "contents.json"


def _other_number(path):
  path.write_text(path.read_text().replace('"step": 3', '"step": 4'))


def _empty(path):
  shutil.rmtree(path)
  path.mkdir()


DAMAGES = {
  "array file truncated": (lambda f: _truncate(_largest(f, 3)), "cannot be"),
  "array file missing": (lambda f: _largest(f, 3).unlink(), "cannot be"),
  "one bit of an array": (
    lambda f: _garble(_largest(f, 3)),
    "w has other bits",
  ),
  "page truncated": (lambda f: _truncate(_page(f, 3)), "not what was written"),
  "page garbled": (lambda f: _garble(_page(f, 3)), "not what was written"),
  "page with another number": (
    lambda f: _other_number(_page(f, 3)),
    "not what was written",
  ),
  "page missing": (lambda f: _page(f, 3).unlink(), "contents.json is missing"),
  "arrays missing": (lambda f: shutil.rmtree(f / "3" / "arrays"), "arrays"),
  "empty directory": (lambda f: _empty(f / "3"), "contents.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_used_and_the_damaged_one_kept_aside(folder, damage):
  act, reason = DAMAGES[damage]
  act(folder)
  names = sorted(path.name for path in folder.rglob("*"))
  said = []
  with checkpoint.Checkpointer(folder, keep=3, say=said.append) as saver:
    got, extra, step = saver.restore(TEMPLATE)
    assert (step, extra["step"], int(got["count"])) == (2, 2, 2)
    np.testing.assert_array_equal(got["w"], _tree(2)["w"])
    (line,) = said
    assert "\n" not in line and "step 3" in line and "step 2 is used" in line
    assert reason in line and str(folder) in line
    # Who only reads changes nothing.
    assert sorted(path.name for path in folder.rglob("*")) == names
    assert saver.steps() == [1, 2]
    saver.save(3, _tree(3), {"step": 3})
    saver.wait()
    assert saver.steps() == [1, 2, 3] and (folder / "3.damaged").is_dir()
    assert int(saver.restore(TEMPLATE)[0]["count"]) == 3
  assert len(said) == 1


def test_every_file_of_a_step_may_go_and_no_wrong_number_comes_back(folder):
  wanted = {step: np.asarray(_tree(step)["w"]).tobytes() for step in (2, 3)}
  for file in _files(folder, 3):
    for act in (_garble, _truncate, pathlib.Path.unlink):
      whole = file.read_bytes()
      act(file)
      loader = checkpoint.Checkpointer(folder, keep=3, say=lambda line: None)
      got, extra, step = loader.restore(TEMPLATE)
      assert np.asarray(got["w"]).tobytes() == wanted[step], file
      assert extra["step"] == step == int(got["count"])
      file.write_bytes(whole)


def test_two_damaged_ones_are_passed_over(folder):
  _garble(_largest(folder, 3))
  _page(folder, 2).unlink()
  said = []
  with checkpoint.Checkpointer(folder, keep=3, say=said.append) as saver:
    assert saver.restore(TEMPLATE)[2] == 1
    assert [line.split(" in ")[0][-1] for line in said] == ["3", "2"]
    saver.save(2, _tree(2))
    saver.save(3, _tree(3))
  assert (folder / "2.damaged").is_dir() and (folder / "3.damaged").is_dir()


def test_the_same_step_damaged_twice_is_kept_twice(folder):
  for _ in range(2):
    _garble(_largest(folder, 3))
    with checkpoint.Checkpointer(
      folder, keep=3, say=lambda line: None
    ) as saver:
      saver.restore(TEMPLATE)
      saver.save(3, _tree(3))
  aside = sorted(path.name for path in folder.glob("*damaged*"))
  assert aside == ["3.damaged", "3.damaged.2"]


def test_if_none_is_whole_there_is_one_line_that_says_why_of_each(folder):
  for step in (1, 2, 3):
    _page(folder, step).unlink()
  loader = checkpoint.Checkpointer(folder, keep=3)
  for _ in range(2):  # asked again it says the same
    with pytest.raises(checkpoint.Damaged) as error:
      loader.restore(TEMPLATE)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text
    assert all(f"step {step}: contents/" in text for step in (1, 2, 3))


def test_a_step_that_was_asked_for_is_not_replaced_by_another(folder):
  _garble(_largest(folder, 2))
  loader = checkpoint.Checkpointer(folder, keep=3)
  with pytest.raises(checkpoint.Damaged, match="step 2: w has other bits"):
    loader.restore(TEMPLATE, step=2)


def test_another_configuration_is_not_called_damage(folder):
  said = []
  loader = checkpoint.Checkpointer(folder, keep=3, say=said.append)
  with pytest.raises(ValueError, match=r"w is float32\[96, 64\] there") as e:
    loader.restore(TEMPLATE | {"w": jnp.zeros((64, 96))})
  assert not isinstance(e.value, checkpoint.Damaged) and not said
  assert loader.restore(TEMPLATE)[2] == 3


@pytest.mark.parametrize(
  "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")]
)
def test_a_full_memory_is_not_called_damage(folder, monkeypatch, error):
  def full(*args, **kwargs):
    raise error

  handler = checkpoint.ocp.StandardCheckpointHandler
  monkeypatch.setattr(handler, "restore", full)
  loader = checkpoint.Checkpointer(folder, keep=3)
  with pytest.raises(type(error)):
    loader.restore(TEMPLATE)
