"""The rollouts of a run: each when its step asks for it, or some steps ahead.

    rollout of step i   is sampled by the policy after max(0, i - ahead) steps

With ahead = 0 that is the policy that the step trains. Else sampling and
rewards of later steps go on in a thread beside the train step, on devices of
their own or, where there are none, in what the train step leaves idle. Which
policy samples which rollout is fixed by the numbers alone, so the same seed
gives the same run whatever takes how long.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
from typing import Any

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.distributed import weight_sync
from jaxrl_llm.rollout import groups as grouping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
  """What a step trains on, and what there is to say of it.

  Attributes:
    step: that trains on it, from 0.
    version: steps that the policy had been trained when it sampled this.
    groups: B of them; those that waited in the plan are older.
    metrics: of all samples, of the plan, and seconds.
    rows: for samples.jsonl.
    messages: of the rewards.
    tokens: that were sampled.
  """

  step: int
  version: int
  groups: grouping.Groups
  metrics: dict[str, float]
  rows: list[dict[str, Any]]
  messages: list[str]
  tokens: float

  def with_versions(self) -> types.Rollout:
    """For a train step that may be given older rows than its policy's.

    Writes extras["policy_version"] [N, T] int32, of the policy that chose each
    token, and extras["stale"] [N], 1 where that is not the one to be trained.
    """
    out = self.groups.rollout()
    versions = self.groups.version.repeat(self.groups.group_size)
    of_tokens = np.broadcast_to(versions[:, None], out.mask.shape)
    extras = {
      "stale": (versions < self.step).astype(np.float32),
      "policy_version": np.ascontiguousarray(of_tokens, np.int32),
    }
    return out.replace(extras=out.extras | extras)

  def staleness(self) -> np.ndarray:
    """[groups] train steps between each group's policy and this step's."""
    return self.step - self.groups.version

  def aged(self, metrics: dict[str, float]) -> dict[str, float]:
    """A train step's metrics with staleness and staleness_max, in steps.

    Without the gap between sampler and trainer where no row was sampled by the
    policy that was trained: it is measured on such rows.
    """
    ages = self.staleness()
    if ages.min() > 0:
      gap = {name for name in metrics if name.startswith("sampler_gap")}
      metrics = {k: v for k, v in metrics.items() if k not in gap}
    return metrics | {
      "staleness": float(ages.mean()),
      "staleness_max": float(ages.max()),
    }


Gather = Callable[[int, int, weight_sync.Synced], Gathered]


class Rollouts:
  """Hands out the rollouts of a run in the order of its steps."""

  def __init__(self, gather: Gather, *, steps: int, ahead: int = 0):
    """Nothing is sampled yet.

    Args:
      gather: (step, version, parameters) -> what a step trains on; its calls
        follow one another in the order of the steps.
      steps: of the run; nothing is sampled for later ones.
      ahead: steps that a policy may be older than the one it is trained by.
    """
    self._gather, self._steps, self._ahead = gather, steps, ahead
    self._waiting: dict[int, concurrent.futures.Future] = {}
    self._thread = concurrent.futures.ThreadPoolExecutor(1) if ahead else None

  def take(self, step: int, sync: Callable[[], weight_sync.Synced]) -> Gathered:
    """The rollout of a step; what it may make for later ones is begun.

    Args:
      step: one more than that of the last call; after restore() any.
      sync: makes the parameters of the policy that the step trains. They are
        freed when all is sampled that they are for.
    """
    found = self._waiting.pop(step).result() if step in self._waiting else None
    if self._ahead:
      self._begin(step, found is None, sync)
    elif found is None:
      with sync() as synced:
        return self._gather(step, step, synced)
    return found or self._waiting.pop(step).result()

  def _begin(self, step, missing, sync):
    """Samples on to `ahead` steps from here, in the thread."""
    first = step if missing else max(self._waiting, default=step) + 1
    later = range(first, min(step + self._ahead, self._steps - 1) + 1)
    if not later:
      return
    synced = sync()
    for number in later:
      self._waiting[number] = self._thread.submit(
        self._gather, number, step, synced
      )
    self._thread.submit(synced.free)

  def settle(self) -> None:
    """Returns when nothing is being sampled; raises what sampling raised."""
    for future in self._waiting.values():
      future.result()

  def state(self) -> list[dict[str, Any]]:
    """What waits, in order, as JSON values and numpy arrays; settles first."""
    found = [self._waiting[step].result() for step in sorted(self._waiting)]
    return [
      {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
      | {"groups": grouping.pack(one.groups)}
      for one in found
    ]

  def restore(self, state: list[dict[str, Any]]) -> None:
    """Takes back what state() gave."""
    for fields in state:
      groups = grouping.unpack(fields["groups"])
      future = concurrent.futures.Future()
      future.set_result(Gathered(**fields | {"groups": groups}))
      self._waiting[fields["step"]] = future

  def close(self) -> None:
    """Ends the thread when it has sampled what it began; the rest is not."""
    if self._thread is not None:
      self._thread.shutdown(wait=True, cancel_futures=True)
