"""The page that lies in every checkpoint and says what is in it.

    contents.json   {"crc32": of what follows, as JSON,
                     "contents": {"arrays": {name: shape, dtype, fingerprint},
                                  "extra": the host's own values}}

Arrays have flat names ("params.layers.mlp.up"), so that optimizer states of
any shape can be put back into the template's own structure. What is damaged
on a disk differs from this page, or the page from its checksum.
"""

import base64
from collections.abc import Mapping
import json
import os
import pathlib
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrl_llm.distributed import fingerprint

FILE = "contents.json"
# What may go wrong in reading although the files are whole.
_NOT_THE_FILES = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_WORDS = 160  # characters of a message that are shown
_ARRAY = "__array__"  # marks, in `extra`, a dict that stands for an array


class Damaged(ValueError):
  """A checkpoint that is not what was written; says what is wrong with it."""


def named(tree: Any) -> dict[str, Any]:
  """Leaves by path, in the order of the tree: {"params.mlp.up": array}.

  Raises:
    ValueError: if two leaves would have one name.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  names = {
    jax.tree_util.keystr(path, simple=True, separator=".") or "root": leaf
    for path, leaf in leaves
  }
  if len(names) < len(leaves):
    raise ValueError("two arrays have one name: a key of the tree holds a '.'.")
  return names


def filled(names: Mapping[str, Any]) -> dict[str, Any]:
  """Without the empty arrays, which the format cannot hold."""
  return {name: leaf for name, leaf in names.items() if np.size(leaf)}


def pack(
  arrays: Mapping[str, jax.Array], extra: Mapping[str, Any]
) -> dict[str, Any]:
  """The page, as what json takes; later changes of `extra` do not reach it.

  Args:
    arrays: by name, none of them empty; on a mesh of several processes every
      process must call.
    extra: what json takes, and numpy arrays of any shape at any depth.
  """
  prints = {k: fingerprint.fingerprint(v) for k, v in arrays.items()}
  described = {
    name: _described(arrays[name]) | {"fingerprint": int(value)}
    for name, value in jax.device_get(prints).items()
  }
  contents = {"arrays": described, "extra": _encoded(extra)}
  return {"crc32": _checksum(contents), "contents": contents}


def read(path: pathlib.Path) -> dict[str, Any]:
  """The contents {"arrays", "extra"}, of a page in the folder `path`.

  Raises:
    Damaged: if it is not there, or not as it was written.
  """
  place = f"{path.name}/{FILE}"
  try:
    page = json.loads((path / FILE).read_text(encoding="utf-8"))
    contents = page["contents"]
    whole = page["crc32"] == _checksum(contents)
  except (FileNotFoundError, NotADirectoryError):
    raise Damaged(f"{place} is missing") from None
  except (ValueError, KeyError, TypeError):
    whole = False
  if not whole:
    raise Damaged(f"{place} is not what was written")
  return contents | {"extra": _decoded(contents["extra"])}


def read_arrays(
  path: pathlib.Path, wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """The arrays by name; each process reads its share, with no barrier.

  Args:
    path: folder that they were saved in.
    wanted: arrays or jax.ShapeDtypeStruct by name, which say where to.

  Raises:
    Damaged: if the files cannot be read.
  """
  abstract = {name: _abstract(leaf) for name, leaf in wanted.items()}
  try:
    return ocp.StandardCheckpointHandler().restore(
      path, args=ocp.args.StandardRestore(abstract)
    )
  except _NOT_THE_FILES:
    raise
  except Exception as error:  # tensorstore has no kinds of its own
    raise Damaged(f"{path.name} cannot be read: {short(error)}") from error


def difference(
  contents: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str | None:
  """The first array that was saved in another shape or dtype than is wanted.

  Args:
    contents: of a checkpoint, as read.
    wanted: arrays or jax.ShapeDtypeStruct by name, none of them empty.
  """
  saved = {
    name: {"shape": found["shape"], "dtype": found["dtype"]}
    for name, found in contents["arrays"].items()
  }
  now = {name: _described(leaf) for name, leaf in wanted.items()}
  for name in sorted(saved.keys() | now.keys()):
    there, here = saved.get(name), now.get(name)
    if there != here:
      return f"{name} is {_say(there)} there and {_say(here)} now"
  return None


def short(error: BaseException) -> str:
  """What a library's message says about a file, in a few words."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  words = " ".join(str(error).split()) or type(error).__name__
  if code := re.search(r"os_error_code='(\d+)'", words):  # of tensorstore
    return os.strerror(int(code[1]))
  return words if len(words) <= _WORDS else f"{words[:_WORDS]} ..."


def check(contents: Mapping[str, Any], arrays: Mapping[str, jax.Array]) -> None:
  """Raises Damaged if an array has other bits than were saved."""
  prints = {k: fingerprint.fingerprint(v) for k, v in arrays.items()}
  for name, value in jax.device_get(prints).items():
    if int(value) != contents["arrays"][name]["fingerprint"]:
      raise Damaged(f"{name} has other bits than were saved")


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of a leaf; host arrays go to the first device."""
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _described(array: Any) -> dict[str, Any]:
  return {"shape": list(array.shape), "dtype": jnp.dtype(array.dtype).name}


def _say(found: Mapping[str, Any] | None) -> str:
  return "missing" if found is None else f"{found['dtype']}{found['shape']}"


def _checksum(contents: Any) -> int:
  """Of the JSON text, which is the same after reading it again."""
  return zlib.crc32(json.dumps(contents).encode())


def _encoded(node: Any) -> Any:
  """A copy in which arrays are text."""
  if isinstance(node, np.ndarray):
    text = base64.b64encode(node.tobytes()).decode("ascii")
    return {_ARRAY: text} | _described(node)
  if isinstance(node, Mapping):
    return {k: _encoded(v) for k, v in node.items()}
  if isinstance(node, list | tuple):
    return [_encoded(v) for v in node]
  return node


def _decoded(node: Any) -> Any:
  """A copy in which text is arrays again, writable ones."""
  if isinstance(node, Mapping):
    if _ARRAY in node:
      flat = np.frombuffer(
        base64.b64decode(node[_ARRAY]), jnp.dtype(node["dtype"])
      )
      return flat.reshape(node["shape"]).copy()
    return {k: _decoded(v) for k, v in node.items()}
  if isinstance(node, list):
    return [_decoded(v) for v in node]
  return node
