"""A step without gradients: perturbed models answer, their noise is weighed."""

from collections.abc import Sequence
import dataclasses
from typing import Any
import warnings

import jax
import numpy as np

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.methods import base
from jaxrl_llm.rollout import collect, groups
from jaxrl_llm.training import ahead, evolution, gathering, setup, summary
from jaxrl_llm.training import learner as learners
from jaxrl_llm.training import state as states


class Learner:
  """Learns by evolution; the counterpart of learner.Learner.

  Attributes:
    state: the train state after the last step.
  """

  def __init__(self, run: setup.Run, pool):
    """Nothing is sampled yet; `pool` scores."""
    self._run, self._pool = run, pool
    self.state: states.TrainState = run.init_state()
    places = jax.tree.map(lambda leaf: leaf.sharding, self.state.params)
    self._perturb = jax.jit(run.method.perturb, out_shardings=places)
    self._frozen = run.reference()
    self._together = _side_by_side(run)
    self._train_step = None

  def extra(self) -> dict[str, Any]:
    """Nothing beside the state: the noise is a function of seed and step."""
    return {}

  def restore(self, state: states.TrainState, extra: dict[str, Any]) -> None:
    """Goes on from a checkpoint."""
    del extra
    self.state = state

  def begin(self) -> None:
    """Begins to compile the step, beside the first members."""
    fitness = np.zeros(self._run.method.population, np.float32)
    self._train_step = ahead.compile_ahead(
      self._run.train_step, self.state, self._placed(fitness), None
    )

  def step(self, step: int) -> learners.Learnt:
    """Step number `step`, from 0."""
    run, clock = self._run, gathering.Clock()
    problems = next(run.batches)
    parts, syncs = [], []
    for seeds in self._seeds(step):
      samples, synced = self._members(seeds, problems, step)
      parts.append(samples)
      syncs.append(synced)
    clock.lap("rollout")
    samples = groups.join_samples(parts)
    scored = summary.score(self._pool, samples)
    clock.lap("reward")
    fitness = _fitness(scored.rewards, len(problems), run.method)
    train_step = self._train_step.result()
    self.state, metrics = train_step(self.state, self._placed(fitness), None)
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    clock.lap("train")
    metrics |= summary.sample_metrics(samples, scored) | _summed(syncs)
    del metrics["zero_variance"]  # of groups, which there are none of
    metrics |= clock.seconds()
    tokens = float(samples.generation.mask.sum())
    metrics["tokens_per_second"] = tokens / metrics["time/step"]
    rows = summary.sample_rows(parts[0], scored, run.config.logging.samples)
    return learners.Learnt(
      metrics,
      [row | {"policy_version": step, "member": 0} for row in rows],
      list(scored.messages),
    )

  def settle(self) -> None:
    """Nothing is sampled between steps."""

  def close(self) -> None:
    """Nothing is sampled beside the steps."""

  def _seeds(self, step: int) -> np.ndarray:
    """[rounds, members at once] of a step."""
    method = self._run.method
    found = evolution.seeds(self._run.config.seed, step, method.population)
    return np.asarray(found).reshape(-1, method.members_at_once)

  def _members(
    self, seeds: np.ndarray, problems: Sequence[Any], step: int
  ) -> tuple[collect.Samples, dict[str, float]]:
    """Greedy completions by each member, those of a problem side by side."""
    run = self._run
    if self._together:
      given = self._frozen, self.state.params, seeds
      return self._together(given, problems, step), {}
    params = self._perturb(self.state.params, seeds[0])
    with run.greedy.sync(run.attach(self._frozen, params)) as synced:
      del params  # one member's at a time
      return run.greedy(synced.params, problems, step), synced.metrics()

  def _placed(self, fitness: np.ndarray) -> Any:
    return meshes.replicate(fitness, self._run.mesh)


def _side_by_side(run: setup.Run) -> collect.Collector | None:
  """A collector whose group are members; None for one after another."""
  method, greedy = run.method, run.greedy
  if method.members_at_once == 1:
    return None

  def generate(given, prompts, mask, ids, *rest):
    def one(seed):
      params = run.attach(frozen, method.perturb(params_kept, seed))
      return greedy.generate(params, prompts, mask, ids[: len(prompts)], *rest)

    frozen, params_kept, seeds = given
    found = jax.vmap(one)(seeds)  # [members, B, ...]
    return jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found
    )

  return dataclasses.replace(
    greedy, group_size=method.members_at_once, generate=jax.jit(generate)
  )


def _fitness(
  rewards: np.ndarray, prompts: int, method: base.Evolution
) -> np.ndarray:
  """[P] mean reward of each member over what could be scored; else NaN.

  Args:
    rewards: [rounds * B * members at once], as sampled.
    prompts: B.
    method: says how many members there are.
  """
  shape = (-1, prompts, method.members_at_once)
  with warnings.catch_warnings():  # of a mean of nothing
    warnings.simplefilter("ignore", RuntimeWarning)
    means = np.nanmean(np.asarray(rewards, np.float64).reshape(shape), axis=1)
  return means.reshape(-1).astype(np.float32)


def _summed(syncs: Sequence[dict[str, float]]) -> dict[str, float]:
  """Bytes and seconds of all members' copies."""
  return {name: sum(each[name] for each in syncs) for name in (syncs[0] or ())}
