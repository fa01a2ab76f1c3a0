"""A tiny model trained on both tasks with any method, all runs side by side.

The parts are those of `jaxrl train`: the method's plan, the engine, the score
and the train step. The runs of a method (tasks x seeds) go through one compiled
step: a task is data, not a program. Each step makes several updates, so ratios
leave 1; the sampler's weights are rounded, as an inference server's are, so its
log-probabilities are a little off the trainer's.
"""

import dataclasses
import functools
import time
from typing import Any

import compare_report as report
import compare_tasks as tasks
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods, types
from jaxrl_llm.methods import base
from jaxrl_llm.models import families
from jaxrl_llm.training import ahead, heads, score
from jaxrl_llm.training import state as states
from jaxrl_llm.training import step as stepping

# Number of the first batch of an evaluation: no step's.
_EVALUATION = 1 << 20
METRICS = ("clip_fraction", "sampler_gap_mean", "grad_norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What all methods share.

  Attributes:
    seeds: runs of each task.
    steps: rollouts that a run learns from.
    prompts: B.
    group_size: G.
    mini_batches: updates in a pass over a rollout.
    epochs: passes over a rollout.
    learning_rate: of Adam.
    width: D of the two-layer model.
    evaluations: batches of an evaluation.
  """

  seeds: int = 3
  steps: int = 40
  prompts: int = 8
  group_size: int = 8
  mini_batches: int = 2
  epochs: int = 2
  learning_rate: float = 5e-3
  width: int = 32
  evaluations: int = 8

  @property
  def runs(self) -> int:
    """Tasks times seeds."""
    return len(tasks.TASKS) * self.seeds

  def model(self):
    """A random Llama of two layers."""
    return families.build(
      dataclasses.replace(
        families.TINY,
        vocab_size=tasks.V,
        width=self.width,
        heads=2,
        kv_heads=1,
        head_dim=self.width // 2,
        mlp_width=2 * self.width,
      )
    )

  def optimizer(self, factor: float = 1.0) -> optax.GradientTransformation:
    """Adam after clipping by the norm."""
    adam = optax.adam(self.learning_rate * factor)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


class Prepared:
  """A method whose train step is compiled in another thread, at once."""

  def __init__(self, arena: "Arena", name: str):
    """Builds the method and starts compiling.

    Raises:
      ValueError: its defaults do not fit, or there is no such method.
    """
    self.name = name
    self.method = methods.get(name)(**tasks.OPTIONS.get(name, {})).build()
    self.seconds = 0.0
    self.state, step = arena.parts(self.method)
    start = time.perf_counter()
    self._compiling = ahead.compile_ahead(
      step, self.state, arena.example(self.method), arena.params
    )

    def done(_):
      self.seconds = time.perf_counter() - start

    self._compiling.add_done_callback(done)

  def step(self) -> Any:
    """The compiled train step, waited for."""
    return self._compiling.result()


class Arena:
  """Model and sampler, compiled once for all methods."""

  def __init__(self, setting: Setting):
    """Makes random weights, one set a seed, the same for both tasks."""
    self.setting = setting
    self.model = setting.model()
    seeds = jax.vmap(jax.random.key)(jnp.arange(setting.seeds))
    keys = jnp.concatenate([seeds] * len(tasks.TASKS))
    self.params = jax.jit(jax.vmap(self.model.init))(keys)
    self._sample = tasks.make_engine(
      self.model, keys, group_size=setting.group_size
    )
    self._greedy = tasks.make_engine(
      self.model, keys[:1], group_size=1, greedy=True
    )

  def parts(self, method: base.Method) -> tuple[states.TrainState, Any]:
    """State and train step of all runs; nothing is compiled.

    Raises:
      ValueError: the method needs larger groups.
    """
    setting = self.setting
    if setting.group_size < method.min_group_size:
      raise ValueError(
        f"group_size must be at least {method.min_group_size}, got"
        f" {setting.group_size}."
      )
    optimizer = setting.optimizer()
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
      lambda params: states.init_state(params, method, optimizer, head=head)
    )(self.params)
    return state, jax.jit(jax.vmap(step), compiler_options=tasks.COMPILER)

  def example(self, method: base.Method) -> types.Rollout:
    """Arrays of the shapes of one step's rollouts."""
    one = ahead.example_rollout(
      self.setting.prompts,
      self.setting.group_size,
      tasks.S,
      tasks.T,
      rewards=len(tasks.PARTS),
      extras=method.plan.extras,
    )
    return jax.tree.map(lambda x: np.stack([x] * self.setting.runs), one)

  def train(
    self, prepared: Prepared, *, say=lambda step: None
  ) -> report.Result:
    """Trains all runs of a method.

    Args:
      prepared: the method.
      say: called with the number of finished steps.
    """
    prepared.step()  # its compilation is no part of the steps' time
    start = time.perf_counter()
    state, rewards, logged = self.learn(prepared, say=say)
    logged = jax.device_get(logged)
    seconds = time.perf_counter() - start
    shape = (len(tasks.TASKS), self.setting.seeds)
    before, after = self.untrained, self._evaluate(state.params)
    return report.Result(
      name=prepared.name,
      rewards=np.stack(rewards, axis=-1).reshape(*shape, -1),
      before=before[0].reshape(shape),
      after=after[0].reshape(shape),
      error=np.hypot(before[1], after[1]).reshape(shape),
      compile_seconds=prepared.seconds,
      seconds=seconds,
      metrics={
        name: float(np.mean([metrics[name] for metrics in logged]))
        for name in METRICS
        if name in logged[0]
      },
    )

  def learn(
    self, prepared: Prepared, *, say=lambda step: None
  ) -> tuple[states.TrainState, list[np.ndarray], list[types.Metrics]]:
    """All steps of a method: the last state, and of each step what was seen.

    Args:
      prepared: the method.
      say: called with the number of finished steps.

    Returns:
      State of all runs; a step's mean rewards [runs] and metrics [runs].
    """
    state, step, plan = prepared.state, prepared.step(), prepared.method.plan
    memory = [plan.init() for _ in range(self.setting.runs)]
    rewards, logged = [], []
    for index in range(self.setting.steps):
      rollout, seen, memory = self._gather(plan, memory, state.params, index)
      state, metrics = step(state, rollout, self.params)
      rewards.append(seen)
      logged.append(metrics)
      say(index + 1)
    return state, rewards, logged

  def rounds(self, params, step: int) -> tasks.Rounds:
    """What plans may ask for in a step, of the policies of all runs."""
    return tasks.Rounds(
      self._sample,
      self._greedy,
      tasks.rounded(params),
      step,
      seeds=self.setting.seeds,
      prompts=self.setting.prompts,
    )

  def _gather(self, plan, memory, params, step):
    """Rollouts of all runs, rewards [runs] of what was sampled, memory."""
    rounds = self.rounds(params, step)
    found = [
      plan.gather(rounds.sampler(run), remembered)
      for run, remembered in enumerate(memory)
    ]
    rollouts = [tasks.rollout(groups) for groups, *_ in found]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rollouts)
    return stacked, rounds.seen_rewards(), [new for _, new, _ in found]

  @functools.cached_property
  def untrained(self) -> tuple[np.ndarray, np.ndarray]:
    """Reward of the policies before training, as _evaluate has it."""
    return self._evaluate(self.params)

  def _evaluate(self, params) -> tuple[np.ndarray, np.ndarray]:
    """Mean reward [runs] over fresh samples of each prompt, and its error.

    The error is that of the means of groups, whose members share a prompt.
    """
    setting = self.setting
    kinds = np.arange(setting.prompts) % tasks.KINDS
    kinds, means = np.tile(kinds, (setting.runs, 1)), []
    for batch in range(setting.evaluations):
      found = self._sample(params, kinds, _EVALUATION + batch)
      rewards = [
        tasks.score(tasks.TASKS[run // setting.seeds], samples).rewards
        for run, samples in enumerate(found)
      ]
      groups = np.reshape(rewards, (setting.runs, -1, setting.group_size))
      means.append(groups.mean(axis=2))
    means = np.concatenate(means, axis=1)
    return means.mean(axis=1), means.std(axis=1, ddof=1) / means.shape[1] ** 0.5
