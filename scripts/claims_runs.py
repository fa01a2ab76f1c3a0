"""The tiny model of compare_runs.py on a task of one's own, seeds in parallel.

A claim names a method with its options, a reward, and what to measure.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import compare_runs
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.rewards import scored
from jaxrl_llm.rollout import collect, plans
from jaxrl_llm.training import heads, score
from jaxrl_llm.training import state as states
from jaxrl_llm.training import step as stepping

# Number of the first batch of an evaluation: no step's.
_EVALUATION = 1 << 20

# (samples) -> {name: [N]}: parts of a reward, or what is measured.
Judge = Callable[[collect.Samples], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """Runs of one method.

  Attributes:
    params: of all runs, stacked.
    start: those before training.
    curves: {name: [seeds, steps]} means over each step's samples.
    after: {name: [seeds]} means over fresh samples of the trained policies.
    metrics: {name: [seeds, steps]} what each train step said.
  """

  params: Any
  start: Any
  curves: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  metrics: dict[str, np.ndarray]


class Runs:
  """Untrained models, one a seed, and their sampler."""

  def __init__(self, seeds: int, *, length: int = tasks.T, **setting):
    """Makes random weights.

    Args:
      seeds: runs.
      length: T, tokens.
      **setting: of compare_runs.Setting.
    """
    self.setting = compare_runs.Setting(seeds=seeds, **setting)
    self.model, self._length = self.setting.model(), length
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    self.params = jax.jit(jax.vmap(self.model.init))(keys)
    self._engine = tasks.make_engine(
      self.model, keys, group_size=self.setting.group_size, length=length
    )

  def train(
    self,
    config: methods.MethodConfig,
    reward: Judge,
    measure: Judge = lambda samples: {},
    *,
    params: Any = None,
  ) -> Trained:
    """Trains all runs; nothing is shared but the compiled step.

    Args:
      config: the method.
      reward: its parts, which are added up; each is a component.
      measure: what else to follow, by completion.
      params: to begin with; None takes the untrained ones.
    """
    method, start = config.build(), self.params if params is None else params
    state, step = self._parts(method, start)
    memory = [method.plan.init() for _ in range(self.setting.seeds)]
    curves, logged = [], []
    for number in range(self.setting.steps):
      found = self.sample(state.params, number)
      rollouts = []
      for run, samples in enumerate(found):
        groups, memory[run], _ = method.plan.gather(
          _sampler(samples, number, reward), memory[run]
        )
        rollouts.append(_rollout(groups))
      curves.append(_means(found, reward, measure))
      stacked = jax.tree.map(lambda *x: np.stack(x), *rollouts)
      state, metrics = step(state, stacked, start)
      logged.append(metrics)
    params, logged = jax.device_get((state.params, logged))
    return Trained(
      params=params,
      start=start,
      curves={k: np.stack([c[k] for c in curves], axis=1) for k in curves[0]},
      after=self.evaluate(params, reward, measure),
      metrics={k: np.stack([m[k] for m in logged], axis=1) for k in logged[0]},
    )

  def evaluate(
    self, params: Any, reward: Judge, measure: Judge = lambda samples: {}
  ) -> dict[str, np.ndarray]:
    """{name: [seeds]} means over fresh samples, "reward" among them."""
    batches = [
      _means(self.sample(params, _EVALUATION + index), reward, measure)
      for index in range(self.setting.evaluations)
    ]
    return {k: np.mean([b[k] for b in batches], axis=0) for k in batches[0]}

  def sample(self, params: Any, number: int) -> list[collect.Samples]:
    """Samples of each run; equal arguments, equal result."""
    kinds = np.stack(
      [
        np.random.default_rng((seed, number)).integers(
          tasks.KINDS, size=self.setting.prompts
        )
        for seed in range(self.setting.seeds)
      ]
    )
    return self._engine(params, kinds, number)

  def _parts(self, method, params):
    """State and compiled step of all runs."""
    setting, optimizer = self.setting, self.setting.optimizer()
    head = heads.of_method(method, self.model, setting.optimizer)
    step = stepping.make_train_step(
      score.make_score(self.model, needs=method.needs, head=method.head),
      method,
      optimizer,
      mini_batches=setting.mini_batches,
      epochs=setting.epochs,
      head=head,
    )
    state = jax.vmap(
      lambda p: states.init_state(p, method, optimizer, head=head)
    )(params)
    return state, jax.jit(jax.vmap(step), compiler_options=tasks.COMPILER)


def gathered(
  plan: types.Plan, samples: collect.Samples, reward: Judge
) -> types.Rollout:
  """The rollout that a plan makes of given samples in a first step."""
  groups, _, _ = plan.gather(_sampler(samples, 0, reward), plan.init())
  return _rollout(groups)


def hits(samples: collect.Samples) -> np.ndarray:
  """[N, T] true where a token is its prompt's target."""
  answers = [int(problem.answer) for problem in samples.problems]
  wanted = np.repeat(answers, samples.group_size)[:, None]
  return (samples.generation.completions == wanted) & samples.generation.mask


def lengths(samples: collect.Samples) -> np.ndarray:
  """[N] tokens of each completion."""
  return samples.generation.mask.sum(axis=1)


def _scored(reward: Judge, samples) -> scored.Scored:
  parts = {k: np.float32(v) for k, v in reward(samples).items()}
  failures = dict.fromkeys(scored.KINDS, 0)
  return scored.Scored(sum(parts.values()), parts, failures, messages=[])


def _sampler(samples, number, reward) -> plans.Sampler:
  return plans.Sampler(
    step=number,
    batch_size=len(samples.problems),
    problems=lambda: samples.problems,
    collect=lambda problems, first: samples,
    greedy=lambda problems: None,
    score=lambda samples: _scored(reward, samples),
    tokenizer=tasks.TOKENIZER,
  )


def _rollout(groups):
  """With reward_components and reward_weights, as a run's."""
  out = groups.rollout()
  parts = np.stack(list(groups.components.values()), axis=1)
  extras = {"reward_components": parts, "reward_weights": np.ones_like(parts)}
  return out.replace(extras=out.extras | extras)


def _means(found, reward, measure) -> dict[str, np.ndarray]:
  """{name: [seeds]}."""
  each = [
    {"reward": _scored(reward, samples).rewards} | dict(measure(samples))
    for samples in found
  ]
  return {k: np.array([np.mean(one[k]) for one in each]) for k in each[0]}
