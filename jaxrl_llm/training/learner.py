"""What one step of a run does: gathers a rollout and trains on it."""

from typing import Any, NamedTuple

import jax

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import weight_sync
from jaxrl_llm.training import ahead, gathering, rollouts, setup, summary
from jaxrl_llm.training import state as states


class Learnt(NamedTuple):
  """What there is to say of a step.

  Attributes:
    metrics: plain floats by name.
    rows: completions, for samples.jsonl.
    messages: of the rewards.
  """

  metrics: dict[str, float]
  rows: list[dict[str, Any]]
  messages: list[str]


class Learner:
  """Learns by gradients, from rollouts of its own policy.

  Attributes:
    state: the train state after the last step.
  """

  def __init__(self, run: setup.Run, pool):
    """Nothing is sampled yet; `pool` scores."""
    self._run, self._pool = run, pool
    self.state: states.TrainState = run.init_state()
    self._gathering = gathering.Gathering(run, pool)
    self._rollouts = rollouts.Rollouts(
      self._gathering,
      steps=run.config.steps,
      ahead=run.config.rollout_ahead,
    )
    self._reference = run.reference()
    self._steps = ahead.CompiledSteps(run.train_step)

  def extra(self) -> dict[str, Any]:
    """What a checkpoint holds beside the state, as it saves it."""
    return {
      "waiting": self._rollouts.state(),
      "plan": self._gathering.plan_state,
    }

  def restore(self, state: states.TrainState, extra: dict[str, Any]) -> None:
    """Goes on from a checkpoint.

    Raises:
      ValueError: if it is of a method with another plan.
    """
    self.state = state
    self._gathering.plan_state = _same_plan(
      extra.get("plan", {}), self._gathering.plan_state
    )
    self._rollouts.restore(extra.get("waiting", []))

  def begin(self) -> None:
    """Begins to compile the train step, beside the first rollout."""
    config = self._run.config
    if config.pack:  # its sizes are not known before it is sampled
      return
    example = ahead.example_rollout(
      config.prompts_per_step,
      config.group_size,
      config.prompt_length,
      config.completion_length,
      rewards=len(config.reward),
      extras=self._run.method.plan.extras,
      versions=config.rollout_ahead > 0,
    )
    example = meshes.place_rows(example, self._run.mesh)
    self._steps.begin(self.state, example, self._reference)

  def step(self, step: int) -> Learnt:
    """Step number `step`, from 0."""
    run, clock = self._run, gathering.Clock()
    found = self._rollouts.take(step, self._sync)
    clock.lap("wait")
    older = run.config.rollout_ahead > 0
    rollout = found.with_versions() if older else found.groups.rollout()
    rollout = summary.with_components(
      rollout, found.groups.components, self._pool
    )
    rollout, packed = packed_rollout(run, rollout)
    rollout = meshes.place_rows(rollout, run.mesh)
    train_step = self._steps.begin(
      self.state, rollout, self._reference
    ).result()
    with self._gathering.launching:
      self.state, metrics = train_step(self.state, rollout, self._reference)
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    clock.lap("train")
    if older:
      metrics = found.aged(metrics)
    updates = run.config.mini_batches * run.config.epochs
    metrics |= found.metrics | packed | clock.seconds()
    metrics["learning_rate"] = float(run.schedule(step * updates))
    metrics["tokens_per_second"] = found.tokens / metrics["time/step"]
    return Learnt(metrics, found.rows, found.messages)

  def settle(self) -> None:
    """Returns when nothing is being sampled."""
    self._rollouts.settle()

  def close(self) -> None:
    """Ends what samples beside the steps."""
    self._rollouts.close()

  def _sync(self) -> weight_sync.Synced:
    """The sampler's copy of the policy as it is now."""
    with self._gathering.launching:
      return self._run.collect.sync(self._run.policy(self.state.params))


def packed_rollout(run: setup.Run, rollout):
  """The rollout, packed if the experiment says so, and metrics of that."""
  packer = run.layout.packer()
  return packer(rollout) if packer else (rollout, {})


def _same_plan(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
  """The saved state of a plan; a ValueError if it is that of another."""
  if saved.keys() != fresh.keys():
    raise ValueError(
      "the checkpoint's plan remembers"
      f" {', '.join(sorted(saved)) or 'nothing'}, the method's"
      f" {', '.join(sorted(fresh)) or 'nothing'}; resume with the run's own"
      " method, or start under another name."
    )
  return saved
