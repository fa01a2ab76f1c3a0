"""Endless batches through grain; a few numbers resume them anywhere."""

from collections.abc import Iterator, Sequence
import hashlib
from typing import Any, Self

from jaxrl_llm.data import sources

# Problems before the iterator ends. Grain's own endless repetition overflows
# its length for a batch of one.
_ENDLESS = 2**48

# Problems that are read to tell one data set from another.
_SAMPLED = 64


class Batches(Iterator[list[sources.Problem]]):
  """Iterator over batches; see batches()."""

  def __init__(
    self, problems: Sequence[sources.Problem], batch_size: int, seed: int
  ):
    """Builds the grain pipeline; see batches() for the arguments."""
    import grain.python as grain

    dataset = (
      grain.MapDataset.source(problems)
      .shuffle(seed=seed)
      .repeat(max(1, _ENDLESS // len(problems)))
      .batch(batch_size, batch_fn=list)
    )
    # Records are small: threads that read ahead would only cost memory.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(dataset.to_iter_dataset(options))
    self._identity = {
      "seed": seed,
      "batch_size": batch_size,
      "problems": len(problems),
      "content": _fingerprint(problems),
    }

  def __iter__(self) -> Self:
    """Itself."""
    return self

  def __next__(self) -> list[sources.Problem]:
    """The next batch; there always is one."""
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """Where the iterator is and over what; fit for JSON."""
    return self._identity | {"grain": self._iterator.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where get_state was called.

    Raises:
      ValueError: the state is of other problems, another batch size or seed,
        with which problems would be repeated or left out.
    """
    for name, value in self._identity.items():
      if state.get(name) != value:
        raise ValueError(
          f"the checkpoint's batches have {name} {state.get(name)!r}, this"
          f" run has {value!r}; resume with the same data, or start a new"
          " run."
        )
    self._iterator.set_state(state["grain"])


def batches(
  problems: Sequence[sources.Problem], *, batch_size: int, seed: int
) -> Batches:
  """Endless batches of exactly `batch_size` problems.

  Each epoch visits every problem once, in an order of its own; a batch may
  reach over the end of an epoch, or hold several if the data are few.

  Args:
    problems: random access; must not change.
    batch_size: problems in a batch.
    seed: of the orders.

  Returns:
    An iterator with get_state() and set_state().

  Raises:
    ValueError: there are no problems, or the batch size is not positive.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
  if not len(problems):
    raise ValueError("there are no problems to make batches of.")
  return Batches(problems, batch_size, seed % 2**32)


def _fingerprint(problems: Sequence[sources.Problem]) -> str:
  """Digest of problems spread over the data."""
  digest = hashlib.sha256()
  for i in range(0, len(problems), max(1, len(problems) // _SAMPLED)):
    digest.update(repr(problems[i]).encode())
  return digest.hexdigest()[:16]
