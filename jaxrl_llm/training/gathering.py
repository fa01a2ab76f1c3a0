"""Samples, rewards and plan of one step: what a train step is given."""

from collections.abc import Callable
import contextlib
import dataclasses
import threading
import time

from jaxrl_llm.distributed import weight_sync
from jaxrl_llm.rollout import collect, plans
from jaxrl_llm.training import rollouts, setup, summary


class Gathering:
  """Gathers the rollouts of a run, one call a step, in their order.

  Attributes:
    plan_state: what the method's plan remembers after the last call.
    launching: to be held while a program is launched on devices that this may
      be launching one on from another thread: two that exchange data among the
      same devices must be begun in one order on all of them.
  """

  def __init__(self, run: setup.Run, pool):
    """Nothing is gathered yet; `pool` scores."""
    self._run, self._pool = run, pool
    self.plan_state = run.method.plan.init()
    shared = run.config.rollout_ahead and not run.layout.rollout_mesh
    self.launching = threading.Lock() if shared else contextlib.nullcontext()

  def __call__(
    self, step: int, version: int, synced: weight_sync.Synced
  ) -> rollouts.Gathered:
    """What a step trains on; see rollouts.Gather."""
    run, clock = self._run, Clock()
    sampler = self._sampler(step, version, synced.params, clock)
    groups, self.plan_state, planned = run.method.plan.gather(
      sampler, self.plan_state
    )
    samples, scored = sampler.seen()
    rows = summary.sample_rows(samples, scored, run.config.logging.samples)
    return rollouts.Gathered(
      step=step,
      version=version,
      groups=groups,
      metrics=summary.sample_metrics(samples, scored)
      | planned
      | synced.metrics()
      | clock.laps(),
      rows=[row | {"policy_version": version} for row in rows],
      messages=list(scored.messages),
      tokens=float(samples.generation.mask.sum()),
    )

  def _sampler(self, step, version, params, clock) -> plans.Sampler:
    """What the plan of this step may ask for, its time taken."""
    run = self._run
    sample, greedy = self._launched(run.collect), self._launched(run.greedy)
    return plans.Sampler(
      step=step,
      version=version,
      batch_size=run.config.prompts_per_step,
      problems=lambda: next(run.batches),
      collect=clock.timed(
        "rollout",
        lambda problems, first_id: sample(
          params, problems, step, first_id=first_id
        ),
      ),
      greedy=clock.timed(
        "rollout", lambda problems: greedy(params, problems, step)
      ),
      tokenizer=run.loaded.tokenizer,
      score=clock.timed(
        "reward", lambda samples: summary.score(self._pool, samples)
      ),
    )

  def _launched(self, collector: collect.Collector) -> collect.Collector:
    """The collector, whose programs are launched one at a time."""

    def generate(*args):
      with self.launching:
        return collector.generate(*args)

    return dataclasses.replace(collector, generate=generate)


class Clock:
  """Seconds of each phase, added up over the plan's rounds."""

  def __init__(self):
    """Starts."""
    self._start = self._last = time.perf_counter()
    self._laps = {}

  def lap(self, name: str) -> None:
    """Ends a lap that began where the last one ended."""
    now = time.perf_counter()
    before = self._laps.get(f"time/{name}", 0.0)
    self._laps[f"time/{name}"] = before + now - self._last
    self._last = now

  def timed(self, name: str, function: Callable) -> Callable:
    """The function, which ends a lap with each call."""

    def call(*args):
      result = function(*args)
      self.lap(name)
      return result

    return call

  def laps(self) -> dict[str, float]:
    """{"time/NAME": seconds}."""
    return dict(self._laps)

  def seconds(self) -> dict[str, float]:
    """The laps, and all since the start: time/step."""
    return self._laps | {"time/step": time.perf_counter() - self._start}
