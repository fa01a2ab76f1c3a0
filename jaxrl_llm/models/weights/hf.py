"""Hugging Face folders: safetensors in and out, no pickles, no remote code.

Tensors are read slice by slice from the mapped files straight into the
parameter tree, and written shard file by shard file.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxrl_llm.models import api, hf_config
from jaxrl_llm.models.weights import assemble, names

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}


def read_config(folder: str | os.PathLike[str]) -> api.ModelConfig:
  """The shape that a folder's config.json describes; errors as in load()."""
  try:
    return hf_config.from_hf(_json(pathlib.Path(folder) / "config.json"))
  except (ValueError, TypeError) as error:
    raise ValueError(f"Model folder {folder}: {error}") from error


def load(
  folder: str | os.PathLike[str], **options: Any
) -> tuple[api.ModelConfig, api.Params]:
  """Reads config.json and the safetensors of a folder.

  Args:
    folder: with config.json and model.safetensors or its sharded index.
    **options: sharding and dtype of the parameters, as in assemble.assemble.

  Returns:
    The config, and the parameters.

  Raises:
    FileNotFoundError: one line: no folder, config or weights.
    ValueError: one line: pickles, broken files, unsupported models, tensors
      that are missing, surplus or of a wrong shape (named).
  """
  folder = pathlib.Path(folder)
  try:
    config = hf_config.from_hf(_json(folder / "config.json"))
    with contextlib.ExitStack() as stack:
      tensors = _open(folder, stack)
      prefix = _prefix(tensors)
      _check(config, tensors, prefix)
      read = _reader(config, tensors, prefix)
      return config, assemble.assemble(config, read, **options)
  except (ValueError, TypeError, safetensors.SafetensorError) as error:
    raise ValueError(f"Model folder {folder}: {error}") from error


def save(
  folder: str | os.PathLike[str],
  config: api.ModelConfig,
  params: api.Params,
  *,
  dtype: str = "float32",
  hf_extra: Mapping[str, Any] | None = None,
  generation: Mapping[str, Any] | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a folder that transformers loads; the tokenizer is not written.

  Args:
    folder: made if it is not there; weights that it held are replaced.
    config: shape of the decoder.
    params: the parameter tree.
    dtype: of the tensors in the file: float32, bfloat16 or float16.
    hf_extra: further keys of config.json, such as eos_token_id.
    generation: content of generation_config.json; None writes none.
    max_shard_bytes: above this the weights are cut into several files.

  Raises:
    ValueError: one line: an unknown dtype, parameters that are not those of
      the config, or a config that Hugging Face has no words for.
  """
  if dtype not in DTYPES:
    raise ValueError(
      f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}."
    )
  _check_params(config, params)
  words = hf_config.to_hf(config, extra=hf_extra) | {"dtype": dtype}
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for old in (*folder.glob("model*.safetensors"), folder / _INDEX):
    old.unlink(missing_ok=True)
  _write_json(folder / "config.json", words)
  if generation is not None:
    _write_json(folder / "generation_config.json", dict(generation))
  _write_tensors(folder, config, params, DTYPES[dtype], max_shard_bytes)


def _json(path):
  if not path.parent.is_dir():
    raise FileNotFoundError(f"No model folder at {path.parent}.")
  if not path.is_file():
    raise FileNotFoundError(
      f"Model folder {path.parent} has no {path.name}; download it anew."
    )
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path.name} is no JSON ({error}).") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path.name} holds no JSON object.")
  return found


def _files(folder):
  """Names of the weight files."""
  if (folder / _INDEX).is_file():
    found = _json(folder / _INDEX).get("weight_map")
    if not isinstance(found, dict):
      raise ValueError(f"{_INDEX} has no weight_map; download it anew.")
    return sorted(set(found.values()))
  if (folder / _SINGLE).is_file():
    return [_SINGLE]
  pickles = [p.name for kind in _PICKLES for p in sorted(folder.glob(kind))]
  if pickles:
    raise ValueError(
      f"it has only pickles ({pickles[0]}), which can run code; convert them"
      " to safetensors."
    )
  raise FileNotFoundError(
    f"Model folder {folder} has neither {_SINGLE} nor {_INDEX}."
  )


def _open(folder, stack):
  """Tensor name -> slice of a mapped file."""
  tensors = {}
  for name in _files(folder):
    if pathlib.PurePath(name).name != name:
      raise ValueError(f"{_INDEX} names {name!r}, which is outside the folder.")
    if not (folder / name).is_file():
      raise FileNotFoundError(
        f"Model folder {folder} has no {name}, which {_INDEX} names."
      )
    try:
      file = safetensors.safe_open(folder / name, framework="numpy")
      opened = stack.enter_context(file)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f"{name} is broken or truncated ({error}); download it anew."
      ) from error
    for key in opened.keys():  # noqa: SIM118 (not a mapping)
      tensors[key] = opened.get_slice(key)
  return tensors


def _prefix(tensors):
  for prefix in names.PREFIXES:
    if f"{prefix}embed_tokens.weight" in tensors:
      return prefix
  raise ValueError("no tensor model.embed_tokens.weight; is it a text decoder?")


def _check(config, tensors, prefix):
  expected = names.expected(config, prefix=prefix)
  for name, shape in expected.items():
    if name not in tensors:
      raise ValueError(f"tensor {name} {shape} is missing; download it anew.")
    got = tuple(tensors[name].get_shape())
    if got != shape:
      raise ValueError(
        f"tensor {name} must have the shape {shape}, got {got}; config.json"
        " and weights do not belong together."
      )
    dtype = tensors[name].get_dtype()
    if dtype not in ("F32", "F16", "BF16", "F64"):
      raise ValueError(
        f"tensor {name} has the dtype {dtype}; legal: F32, F16, BF16, F64."
      )
  for name in tensors:
    ignored = any(part in name for part in names.IGNORED)
    tied = config.tied and name.endswith(names.HEAD)
    if name not in expected and not ignored and not tied:
      raise ValueError(
        f"tensor {name} has no place in a {config.family} model of"
        f" {config.depth} layers."
      )


def _reader(config, tensors, prefix):
  def read(path, layer, index):
    name = names.tensor_name(config, path, layer, prefix=prefix)
    kernel = layer is not None and names.is_kernel(path, len(index))
    part = tensors[name][index[::-1] if kernel else index]
    return (part.T if kernel else part).astype(np.float32)

  return read


def _check_params(config, params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  got = {assemble.path_name(path): leaf.shape for path, leaf in leaves}
  wanted = assemble.shapes(config)
  for path in sorted(got.keys() | wanted.keys()):
    if got.get(path) != wanted.get(path):
      raise ValueError(
        f"params {path} must have the shape {wanted.get(path, 'none')}, got"
        f" {got.get(path, 'no such leaf')}: they are not of this config."
      )


def _tensors(
  config: api.ModelConfig, params: api.Params, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """Name and value of each tensor; one leaf is on the host at a time."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = assemble.path_name(path)
    whole = np.asarray(leaf).astype(dtype)
    if not path.startswith("layers/"):
      yield names.tensor_name(config, path, None), whole
      continue
    for layer, one in enumerate(whole):
      one = one.T if names.is_kernel(path, one.ndim) else one
      name = names.tensor_name(config, path, layer)
      yield name, np.ascontiguousarray(one)


def _write_tensors(folder, config, params, dtype, max_shard_bytes):
  sizes = {
    name: int(np.prod(shape)) * dtype.itemsize
    for name, shape in names.expected(config).items()
  }
  total, count, place = sum(sizes.values()), 0, {}
  held, used = {}, 0

  def flush():
    nonlocal held, used, count
    count += 1
    file = f"part-{count}.safetensors"
    safetensors.numpy.save_file(held, folder / file, metadata={"format": "pt"})
    place.update(dict.fromkeys(held, file))
    held, used = {}, 0

  for name, value in _tensors(config, params, dtype):
    if held and used + value.nbytes > max_shard_bytes:
      flush()
    held[name], used = value, used + value.nbytes
  flush()
  _rename(folder, count, place, total)


def _rename(folder, count, place, total):
  """Gives the files the names that say how many there are."""
  if count == 1:
    os.replace(folder / "part-1.safetensors", folder / _SINGLE)
    return
  final = {
    f"part-{i}.safetensors": f"model-{i:05}-of-{count:05}.safetensors"
    for i in range(1, count + 1)
  }
  for old, new in final.items():
    os.replace(folder / old, folder / new)
  weight_map = {name: final[file] for name, file in sorted(place.items())}
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  _write_json(folder / _INDEX, index)


def _write_json(path, content):
  path.write_text(json.dumps(content, indent=2) + "\n")
