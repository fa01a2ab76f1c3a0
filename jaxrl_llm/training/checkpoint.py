"""Everything a run needs to go on, in one atomic save behind its back.

A save copies the arrays off their devices and returns; Orbax writes them
while the run goes on, into a folder with a temporary name that is renamed
when all is on disk. So a kill at any moment leaves the steps before it
untouched. What is read is compared with what was saved, bit by bit.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxrl_llm.distributed import processes
from jaxrl_llm.training import checkpoint_contents as page
from jaxrl_llm.training import checkpoint_folder as places
from jaxrl_llm.training import checkpoint_noise

Damaged = page.Damaged

_ARRAYS = "arrays"
_CONTENTS = "contents"
_PATIENCE = 5.0  # seconds of waiting between two lines that say so


class Checkpointer:
  """Saves and restores steps in a folder; a context manager.

  Where a run has several processes each makes its own, of one shared folder,
  and calls the same methods in the same order.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int,
    keep_period: int = 0,
    say: Callable[[str], None] | None = None,
  ):
    """Opens the folder; made at the first save.

    Args:
      folder: of the checkpoints, one sub-folder a step.
      keep: newest steps that stay; at least 1.
      keep_period: steps that are a multiple of it stay for good; 0: none.
      say: takes a line for the person who watches; None: standard error.

    Raises:
      ValueError: if keep < 1 or keep_period < 0.
    """
    if keep < 1:
      raise ValueError(f"checkpoint.keep must be at least 1, got {keep}.")
    if keep_period < 0:
      raise ValueError(
        f"checkpoint.keep_period must be at least 0, got {keep_period}."
      )
    checkpoint_noise.keep_down()
    self._folder = pathlib.Path(folder).absolute()
    self._keep, self._keep_period = keep, keep_period
    self._say = say or _to_stderr
    self._manager = None
    self._writing = None  # (step, bytes) of the save that is under way
    self._damaged: dict[int, str] = {}  # what is wrong, by step

  def save(
    self, step: int, arrays: Any, extra: Mapping[str, Any] | None = None
  ) -> None:
    """Starts to write one step; one that is there already is left as it is.

    Waits for the save before it. When it returns the caller may change or
    donate everything: what is written was copied.

    Args:
      step: number of finished steps.
      arrays: pytree of arrays (typed PRNG keys as their key data).
      extra: what json takes, for example the data iterator's state, and numpy
        arrays of any shape at any depth; the same in every process.

    Raises:
      OSError: if this save could not begin or the one before it failed.
    """
    self.wait()
    if step in self.steps():
      return
    filled = page.filled(page.named(arrays))
    described = page.pack(filled, extra or {})
    self._writing = step, sum(leaf.nbytes for leaf in filled.values())
    with self._failure_in_one_line():
      self._tidy()
      self._open().save(
        step,
        args=ocp.args.Composite(
          **{
            _ARRAYS: ocp.args.StandardSave(filled),
            _CONTENTS: ocp.args.JsonSave(described),
          }
        ),
        force=True,
      )

  def restore(
    self, template: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any], int]:
    """Reads one step, onto whatever devices the template is on.

    Args:
      template: pytree with the structure, shapes, dtypes and shardings wanted:
        of arrays or of jax.ShapeDtypeStruct.
      step: which one; None takes the newest that is whole. One that is
        damaged is told about, and put aside by the next save.

    Returns:
      (arrays placed as the template's, extra, step).

    Raises:
      FileNotFoundError: if there is no such step.
      ValueError: if the template differs from what was saved, or Damaged if
        no whole step is there.
    """
    self.wait()
    steps = self.steps()
    if not steps and not self._damaged:
      raise FileNotFoundError(f"nothing to resume in {self._folder}.")
    if step is not None and step not in steps:
      raise FileNotFoundError(
        f"no checkpoint of step {step} in {self._folder}; there are"
        f" {', '.join(map(str, steps))}."
      )
    for each in reversed(steps) if step is None else [step]:
      try:
        tree, extra = self._read(each, template)
      except Damaged as damage:
        self._damaged[each] = str(damage)
        continue
      self._tell_damage(each)
      return tree, extra, each
    found = "; ".join(f"step {k}: {v}" for k, v in self._damaged.items())
    raise Damaged(
      f"no checkpoint that was asked for in {self._folder} is whole ({found});"
      " put back a copy, or start anew."
    )

  def steps(self) -> list[int]:
    """The complete steps, oldest first, without those found damaged."""
    found = processes.on_main(lambda: places.steps(self._folder))
    return sorted(set(found) - self._damaged.keys())

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def check(self) -> None:
    """Raises OSError if a save has failed since it was begun; never waits."""
    if self._writing and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when what was saved is on disk; says so if that takes long.

    Raises:
      OSError: if it could not be written.
    """
    if not self._writing:
      return
    with self._failure_in_one_line():
      self._watch()
      self._manager.wait_until_finished()
    self._writing = None

  def close(self) -> None:
    """Waits and lets go of the folder; a second call does nothing.

    Raises:
      OSError: if the last save could not be written.
    """
    self.wait()
    self._let_go()

  def __enter__(self) -> "Checkpointer":
    """Returns itself."""
    return self

  def __exit__(self, kind, *exc) -> None:
    """Closes. An error on its way is not hidden, an impatient person heard."""
    if kind is None:
      self.close()
    elif not issubclass(kind, KeyboardInterrupt):
      try:
        self.close()
      except OSError as failure:
        self._say(str(failure))

  def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Arrays and extra of a step; Damaged if it is not what was saved."""
    names = page.named(template)
    wanted = page.filled(names)
    folder = self._folder / f"{step}"
    contents = processes.on_main(lambda: page.read(folder / _CONTENTS))
    self._refuse_other_config(step, contents, wanted)
    arrays, damage = None, ""
    try:
      arrays = page.read_arrays(folder / _ARRAYS, wanted)
    except Damaged as error:
      damage = str(error)
    if damage := max(processes.gather(damage)):
      raise Damaged(damage)
    page.check(contents, arrays)
    leaves = [
      arrays[name] if name in arrays else jnp.zeros(leaf.shape, leaf.dtype)
      for name, leaf in names.items()
    ]
    tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return tree, contents["extra"]

  def _refuse_other_config(self, step: int, contents, wanted) -> None:
    if found := page.difference(contents, wanted):
      raise ValueError(
        f"the checkpoint of step {step} in {self._folder} was made with"
        f" another configuration: {found}; resume with the run's own config,"
        " or start under another name."
      )

  def _tell_damage(self, used: int) -> None:
    for step, why in self._damaged.items():
      self._say(
        f"the checkpoint of step {step} in {self._folder} is damaged: {why};"
        f" that of step {used} is used instead."
      )

  def _open(self) -> ocp.CheckpointManager:
    """What saves; a folder that is only read is left exactly as it is."""
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self._folder,
        item_handlers={
          _ARRAYS: ocp.StandardCheckpointHandler(),
          _CONTENTS: ocp.JsonCheckpointHandler(page.FILE),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          keep_period=self._keep_period or None,
          create=True,
          cleanup_tmp_directories=False,
        ),
      )
    return self._manager

  def _let_go(self) -> None:
    if self._manager is not None:
      self._manager.close()
    self._manager = None

  def _tidy(self) -> None:
    """Removes what a kill left half-written, puts aside what is damaged.

    Only a run that saves may, and only one of its processes.
    """
    if self._damaged:
      self._let_go()  # it remembers them
    processes.on_main(lambda: places.tidy(self._folder, self._damaged))
    self._damaged = {}

  def _watch(self) -> None:
    """Returns when the save under way has ended; says how far it is."""
    (step, size), start = self._writing, time.monotonic()
    told = start
    while self._manager.is_saving_in_progress():
      time.sleep(0.005)
      now = time.monotonic()
      if now - told >= _PATIENCE:
        told = now
        done = places.human(places.half_written(self._folder))
        self._say(
          f"writing the checkpoint of step {step}: {done} of about"
          f" {places.human(size)} after {now - start:.0f} s"
        )

  @contextlib.contextmanager
  def _failure_in_one_line(self) -> Iterator[None]:
    """Turns what goes wrong in writing into an OSError for a person."""
    try:
      yield
    except Exception as error:
      if processes.lost(error):
        raise  # not for want of room
      (step, size), self._writing = self._writing, None
      with contextlib.suppress(Exception):  # it has failed before
        self._let_go()
      self._manager = None
      if processes.is_main():
        places.sweep(self._folder)
      free = places.human(places.free(self._folder))
      steps = ", ".join(map(str, sorted(places.steps(self._folder)))) or "none"
      raise OSError(
        f"the checkpoint of step {step} could not be written to"
        f" {self._folder}: {page.short(error)}. It needs about"
        f" {places.human(size)}, {free} are free. What was saved before is"
        f" untouched (steps: {steps}): make room, then --resume."
      ) from error


def _to_stderr(line: str) -> None:
  if processes.is_main():
    print(f"jaxrl: {line}", file=sys.stderr, flush=True)
