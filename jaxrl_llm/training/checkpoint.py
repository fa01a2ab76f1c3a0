"""Everything a run needs to go on, in one atomic save.

Orbax writes a step into a folder with a temporary name and renames it when
all is on disk, so a kill at any moment leaves the steps before it untouched.
Arrays are stored under flat names ("params.layers.mlp.up") and put back into
the template's own structure, so optimizer states of any shape survive. What
has no fixed shape (groups that wait for a later step) is numpy in `extra`.
"""

from collections.abc import Callable, Mapping
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_ARRAYS = "arrays"
_EXTRA = "extra"
_LOOSE = "loose"  # numpy arrays of extra, in order
_MARK = "__array__"  # {_MARK: name in _LOOSE} stands in extra for an array


class Checkpointer:
  """Saves and restores steps in a folder; a context manager.

  A save returns when it is complete on disk: nothing the caller does next
  (donating the buffers, being killed) can touch it.
  """

  def __init__(self, folder: str | os.PathLike, *, keep: int):
    """Opens the folder; made at the first save.

    Args:
      folder: of the checkpoints, one sub-folder a step.
      keep: newest steps that stay; at least 1.

    Raises:
      ValueError: if keep < 1.
    """
    if keep < 1:
      raise ValueError(f"checkpoint.keep must be at least 1, got {keep}.")
    for name in ("orbax", "absl"):
      logging.getLogger(name).setLevel(logging.ERROR)
    self._folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._manager = None

  def save(
    self, step: int, arrays: Any, extra: Mapping[str, Any] | None = None
  ) -> None:
    """Writes one step; one that is there already is left as it is.

    Args:
      step: number of finished steps.
      arrays: pytree of arrays (typed PRNG keys as their key data).
      extra: what json takes, for example the data iterator's state, and numpy
        arrays of any shape at any depth.
    """
    manager = self._open()
    if step in manager.all_steps():
      return
    self._sweep()
    filled = {k: v for k, v in _named(arrays).items() if np.size(v)}
    loose = {}
    plain = _without_arrays(dict(extra or {}), loose)
    items = {
      _ARRAYS: ocp.args.StandardSave(filled),
      _EXTRA: ocp.args.JsonSave(plain),
    }
    if loose:
      items[_LOOSE] = ocp.args.PyTreeSave(loose)
    manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore(
    self, template: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any], int]:
    """Reads one step.

    Args:
      template: pytree with the structure, shapes, dtypes and shardings wanted:
        of arrays or of jax.ShapeDtypeStruct.
      step: which one; None takes the newest.

    Returns:
      (arrays placed as the template's, extra, step).

    Raises:
      FileNotFoundError: if there is no such step.
      ValueError: if the template differs from what was saved.
    """
    steps = self.steps()
    if not steps:
      raise FileNotFoundError(f"nothing to resume in {self._folder}.")
    step = steps[-1] if step is None else step
    if step not in steps:
      raise FileNotFoundError(
        f"no checkpoint of step {step} in {self._folder}; there are"
        f" {', '.join(map(str, steps))}."
      )
    wanted = _named(template)
    self._check(step, wanted)
    abstract = {k: _abstract(v) for k, v in wanted.items() if np.size(v)}
    got = self._open().restore(
      step,
      args=ocp.args.Composite(
        **{
          _ARRAYS: ocp.args.StandardRestore(abstract),
          _EXTRA: ocp.args.JsonRestore(),
        }
      ),
    )
    leaves = [
      got[_ARRAYS][k] if k in abstract else jnp.zeros(v.shape, v.dtype)
      for k, v in wanted.items()
    ]
    tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return tree, self._with_arrays(got[_EXTRA] or {}, step), step

  def steps(self) -> list[int]:
    """The complete steps, oldest first."""
    if not self._folder.is_dir():
      return []
    return sorted(self._open().all_steps())

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def wait(self) -> None:
    """Returns when nothing is being written."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go of the folder; a second call does nothing."""
    if self._manager is not None:
      self._manager.close()
    self._manager = None

  def __enter__(self) -> "Checkpointer":
    """Returns itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Closes."""
    self.close()

  def _open(self) -> ocp.CheckpointManager:
    """The manager; a folder that is only read is left exactly as it is."""
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self._folder,
        item_handlers={
          _ARRAYS: ocp.StandardCheckpointHandler(),
          _EXTRA: ocp.JsonCheckpointHandler(),
          _LOOSE: ocp.PyTreeCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          create=True,
          cleanup_tmp_directories=False,
          enable_async_checkpointing=False,
        ),
      )
    return self._manager

  def _with_arrays(self, extra: dict[str, Any], step: int) -> dict[str, Any]:
    """The extra of a step with its arrays in their places."""
    names = []
    _without_marks(extra, names.append)
    if not names:
      return extra
    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    loose = self._open().restore(
      step,
      args=ocp.args.Composite(
        **{_LOOSE: ocp.args.PyTreeRestore(restore_args=kinds)}
      ),
    )[_LOOSE]
    return _without_marks(extra, loose.__getitem__)

  def _sweep(self) -> None:
    """Removes what a kill left half-written; only a process that saves may."""
    for half in self._folder.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(half, ignore_errors=True)

  def _check(self, step: int, wanted: Mapping[str, Any]) -> None:
    """Raises ValueError for the first array that differs from the saved one."""
    saved = {
      name: (tuple(meta.shape), jnp.dtype(meta.dtype).name)
      for name, meta in self._open().item_metadata(step)[_ARRAYS].items()
    }
    now = {
      name: (tuple(leaf.shape), jnp.dtype(leaf.dtype).name)
      for name, leaf in wanted.items()
      if np.size(leaf)
    }
    for name in sorted(saved.keys() | now.keys()):
      if saved.get(name) != now.get(name):
        raise ValueError(
          f"the checkpoint of step {step} in {self._folder} was made with"
          f" another configuration: {name} is {_say(saved.get(name))} there"
          f" and {_say(now.get(name))} now; resume with the run's own"
          " config, or start under another name."
        )


def _named(tree: Any) -> dict[str, Any]:
  """Leaves by path, in the order of the tree: {"params.mlp.up": array}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator=".") or "root": leaf
    for path, leaf in leaves
  }
  if len(named) < len(leaves):
    raise ValueError("two arrays have one name: a key of the tree holds a '.'.")
  return named


def _without_arrays(node: Any, found: dict[str, np.ndarray]) -> Any:
  """A copy with names for arrays, which are put into `found`."""
  if isinstance(node, np.ndarray):
    name = f"a{len(found)}"
    found[name] = node
    return {_MARK: name}
  if isinstance(node, Mapping):
    return {k: _without_arrays(v, found) for k, v in node.items()}
  if isinstance(node, list | tuple):
    return [_without_arrays(v, found) for v in node]
  return node


def _without_marks(node: Any, get: Callable[[str], Any]) -> Any:
  """A copy with get(name) in the place of each array's name."""
  if isinstance(node, Mapping):
    if _MARK in node:
      return get(node[_MARK])
    return {k: _without_marks(v, get) for k, v in node.items()}
  if isinstance(node, list):
    return [_without_marks(v, get) for v in node]
  return node


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of a leaf; host arrays go to the first device."""
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _say(found: tuple[tuple[int, ...], str] | None) -> str:
  return "missing" if found is None else f"{found[1]}{list(found[0])}"
