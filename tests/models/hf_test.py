"""Safetensors folders: there and back, cut over files and devices, broken."""

import dataclasses
import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxrl_llm.models import families
from jaxrl_llm.models.weights import assemble, hf

_GEMMA = dataclasses.replace(
  families.TINY,
  family="gemma3",
  activation="gelu_tanh",
  qk_norm=True,
  window=4,
  layer_windows=(True, False),
  rope_theta_local=100.0,
)
CONFIGS = {
  "llama": dataclasses.replace(families.TINY, tied=False),
  "qwen2": dataclasses.replace(families.TINY, family="qwen2", qkv_bias=True),
  "gemma3": _GEMMA,
}


def write(folder, config, **options):
  shapes = assemble.shapes(config)
  rng = np.random.default_rng(0)
  values = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
  params = assemble.assemble(config, _reader(values))
  hf.save(folder, config, params, **options)
  return params


def _reader(values):
  def read(path, layer, index):
    whole = values[path]
    return (whole if layer is None else whole[layer])[index]

  return read


def _assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_is_loaded_to_the_bit(tmp_path, name):
  params = write(tmp_path, CONFIGS[name], generation={"eos_token_id": 3})
  config, loaded = hf.load(tmp_path)
  assert config == CONFIGS[name]
  _assert_same(loaded, params)
  files = {path.name for path in tmp_path.iterdir()}
  assert files == {
    "config.json",
    "generation_config.json",
    "model.safetensors",
  }


def test_kernels_are_turned_and_names_are_known(tmp_path):
  params = write(tmp_path, CONFIGS["llama"])
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert len(tensors) == 3 + 9 * 2
  np.testing.assert_array_equal(
    tensors["model.layers.1.mlp.up_proj.weight"],
    np.asarray(params["layers"]["mlp"]["up"][1]).T,
  )
  np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"])


def test_many_files_are_one_model(tmp_path):
  one = write(tmp_path, _GEMMA)
  params = write(tmp_path, _GEMMA, max_shard_bytes=60_000)
  _assert_same(one, params)
  files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  assert len(files) > 3 and "model.safetensors" not in files
  assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
  assert all((tmp_path / f).stat().st_size < 70_000 for f in files)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  total = sum(x.nbytes for x in jax.tree.leaves(params))
  assert index["metadata"]["total_size"] == total
  _assert_same(hf.load(tmp_path)[1], params)
  write(tmp_path, _GEMMA)
  left = sorted(p.name for p in tmp_path.glob("model*"))
  assert left == ["model.safetensors"]


@pytest.mark.parametrize("name", ("llama", "gemma3"))
def test_two_devices_hold_what_one_does(tmp_path, name):
  params = write(tmp_path, CONFIGS[name])
  mesh = jax.make_mesh(
    (2,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )

  def place(leaf):
    axis = max(i for i, size in enumerate(leaf.shape) if size % 2 == 0)
    spec = jax.P(*(None,) * axis, "data")
    return jax.NamedSharding(mesh, spec)

  sharding = jax.tree.map(place, params)
  _, loaded = hf.load(tmp_path, sharding=sharding)
  _assert_same(loaded, params)
  for leaf, wanted in zip(
    jax.tree.leaves(loaded), jax.tree.leaves(sharding), strict=True
  ):
    assert leaf.sharding == wanted
    assert leaf.addressable_shards[0].data.size * 2 == leaf.size
  whole = jax.NamedSharding(mesh, jax.P())
  _, loaded = hf.load(tmp_path, sharding=whole)
  _assert_same(loaded, params)
  assert len(loaded["embed"].addressable_shards) == 2


def test_each_part_is_read_once():
  seen = []
  shapes = assemble.shapes(families.TINY)

  def read(path, layer, index):
    seen.append((path, layer, str(index)))
    shape = shapes[path][layer is not None :]
    return np.zeros(shape, np.float32)[index]

  mesh = jax.make_mesh(
    (2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  # Cut over "a", copied over "b".
  sharding = jax.tree.map(
    lambda s: jax.NamedSharding(mesh, jax.P(*(None,) * (len(s) - 1), "a")),
    _tree(shapes),
    is_leaf=lambda s: isinstance(s, tuple),
  )
  assemble.assemble(families.TINY, read, sharding=sharding)
  assert len(seen) == len(set(seen)) == 2 * (2 + 9 * 2)


def _tree(flat):
  tree = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_low_precision_files_are_rounded_once(tmp_path, dtype):
  params = write(tmp_path, CONFIGS["qwen2"], dtype=dtype)
  assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
  _, loaded = hf.load(tmp_path)
  kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(kind).astype(np.float32), params
  )
  _assert_same(loaded, rounded)
  assert loaded["embed"].dtype == np.float32


def test_multimodal_names_are_found(tmp_path):
  params = write(tmp_path, _GEMMA)
  path = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  tensors = {f"language_model.{k}": v for k, v in tensors.items()}
  tensors["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
  safetensors.numpy.save_file(tensors, path)
  _assert_same(hf.load(tmp_path)[1], params)


def _broken(folder, change):
  """Rewrites the tensors of a folder through `change`."""
  write(folder, CONFIGS["llama"])
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


_UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop(_UP), rf"tensor {_UP} \(128, 64\) is missing"),
    (
      lambda t: t.update({_UP: t[_UP].T.copy()}),
      rf"tensor {_UP} must have the shape \(128, 64\), got \(64, 128\)",
    ),
    (
      lambda t: t.update({_UP: t[_UP].astype(np.int8)}),
      f"tensor {_UP} has the dtype I8",
    ),
    (
      lambda t: t.update({"model.layers.2.x": np.ones(3, np.float32)}),
      "tensor model.layers.2.x has no place in a llama model of 2 layers",
    ),
    (lambda t: t.pop("model.embed_tokens.weight"), "no tensor model.embed"),
  ],
)
def test_wrong_tensors_are_named_in_one_line(tmp_path, change, message):
  _broken(tmp_path, change)
  with pytest.raises(ValueError, match=message) as caught:
    hf.load(tmp_path)
  assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_pickles_are_refused_unopened(tmp_path):
  write(tmp_path, CONFIGS["llama"])
  (tmp_path / "model.safetensors").unlink()
  (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
  with pytest.raises(ValueError, match="only pickles .pytorch_model.bin."):
    hf.load(tmp_path)


def test_missing_files_are_one_line(tmp_path):
  with pytest.raises(FileNotFoundError, match="No model folder at"):
    hf.load(tmp_path / "none")
  with pytest.raises(FileNotFoundError, match="has no config.json"):
    hf.load(tmp_path)
  write(tmp_path, _GEMMA, max_shard_bytes=60_000)
  next(tmp_path.glob("model-00002*")).unlink()
  with pytest.raises(FileNotFoundError, match="has no model-00002.*which"):
    hf.load(tmp_path)


@pytest.mark.parametrize("kept", (0, 7, 100, -5))
def test_truncated_weights_are_one_line(tmp_path, kept):
  write(tmp_path, CONFIGS["llama"])
  path = tmp_path / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError, match="broken or truncated") as caught:
    hf.load(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ("", "[1]", "{", '{"model_type": 3}'))
def test_broken_config_is_one_line(tmp_path, text):
  write(tmp_path, CONFIGS["llama"])
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="config.json|model_type") as caught:
    hf.load(tmp_path)
  assert "\n" not in str(caught.value)


def test_wrong_arguments_of_save_are_one_line(tmp_path):
  params = write(tmp_path, CONFIGS["llama"])
  with pytest.raises(ValueError, match="float32, bfloat16, float16, got 'f8'"):
    hf.save(tmp_path, CONFIGS["llama"], params, dtype="f8")
  with pytest.raises(ValueError, match="params head must have the shape none"):
    hf.save(tmp_path, families.TINY, params)
