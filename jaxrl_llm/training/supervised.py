"""Supervised runs: the same loop and train step, on the data's own answers.

A step's rollout is a batch of examples: its completions are their answers, one
a prompt. Nothing is sampled but for the evaluation, whose stop tokens are those
that the answers end with.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm.data import answers
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.training import (
  ahead,
  experiment,
  gathering,
  score,
  setup,
)
from jaxrl_llm.training import learner as learners
from jaxrl_llm.training import state as states


def adapted(config: experiment.Experiment) -> experiment.Experiment:
  """The experiment as a supervised run has it; any other as it is.

  What is about sampling for training is set aside: one row a prompt, no
  temperature, no sampler's devices, nothing ahead. So one config serves a
  supervised run and the reinforcement learning after it. data.epochs becomes
  steps.

  Raises:
    ValueError: one line, as experiment.validate and setup.problems.
  """
  if not config.method.build().supervised:
    return config
  config = dataclasses.replace(
    config,
    group_size=1,
    old_logprobs="sampler",  # none is read
    rollout_ahead=0,
    mesh=dataclasses.replace(config.mesh, rollout=0),
    sampling=experiment.Sampling(stop=config.sampling.stop),
    evaluation=_with_stop(config),
  )
  experiment.validate(config)
  if not config.data.epochs:
    return config
  count = len(setup.problems(config, config.data.split))
  batches = config.data.epochs * count / config.prompts_per_step
  return dataclasses.replace(config, steps=math.ceil(batches))


def _with_stop(config) -> experiment.Evaluation:
  """The evaluation, which stops where the answers do."""
  rule = config.evaluation.sampling
  stop = tuple(dict.fromkeys([*rule.stop, *config.sampling.stop]))
  return dataclasses.replace(
    config.evaluation, sampling=dataclasses.replace(rule, stop=stop)
  )


class Learner:
  """Learns from answers; the counterpart of learner.Learner.

  Attributes:
    state: the train state after the last step.
  """

  def __init__(self, run: setup.Run, pool=None):
    """Nothing is learnt yet; `pool`, which scores, is not asked.

    Raises:
      ValueError: a held-out problem cannot be used; one line.
    """
    del pool
    self._run = run
    self._held_out = self._examples(run.held_out)
    self._held_out.check()
    self._training = self._examples(())
    self.state: states.TrainState = run.init_state()
    self._reference = run.reference()
    self._steps = ahead.CompiledSteps(run.train_step)
    self._measure = _make_measure(run)

  def _examples(self, problems) -> answers.Examples:
    return setup.examples(
      self._run.config, self._run.loaded.tokenizer, problems
    )

  def extra(self) -> dict[str, Any]:
    """Nothing: the batches remember where they are."""
    return {}

  def restore(self, state: states.TrainState, extra: dict[str, Any]) -> None:
    """Goes on from a checkpoint."""
    del extra
    self.state = state

  def begin(self) -> None:
    """Begins to compile the train step."""
    config = self._run.config
    if config.pack:
      return
    example = answers.empty(
      config.prompts_per_step, config.prompt_length, config.completion_length
    )
    example = meshes.place_rows(example, self._run.mesh)
    self._steps.begin(self.state, example, self._reference)

  def step(self, step: int) -> learners.Learnt:
    """Step number `step`, from 0."""
    run, clock = self._run, gathering.Clock()
    rollout = self._training.rollout(next(run.batches))
    lengths = rollout.mask.sum(axis=1)
    rollout, packed = learners.packed_rollout(run, rollout)
    rollout = meshes.place_rows(rollout, run.mesh)
    clock.lap("data")
    train_step = self._steps.begin(
      self.state, rollout, self._reference
    ).result()
    self.state, metrics = train_step(self.state, rollout, self._reference)
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    clock.lap("train")
    updates = run.config.mini_batches * run.config.epochs
    metrics |= packed | clock.seconds()
    metrics["length"] = float(lengths.mean())
    metrics["learning_rate"] = float(run.schedule(step * updates))
    metrics["tokens_per_second"] = float(lengths.sum()) / metrics["time/step"]
    return learners.Learnt(metrics, [], [])

  def held_out(self) -> dict[str, float]:
    """cross_entropy and entropy of the held-out answers, nats a token."""
    config, found = self._run.config, []
    pieces = config.mini_batches * config.micro_batches
    rows = config.prompts_per_step // pieces
    for first in range(0, len(self._held_out), rows):
      rollout = self._held_out.rollout(
        self._held_out[first : first + rows], rows=rows
      )
      rollout = meshes.place_rows(rollout, self._run.mesh)
      found.append(self._measure(self._reference, self.state.params, rollout))
    tokens, nats, entropy = (
      sum(map(float, column)) for column in zip(*found, strict=True)
    )
    return {"cross_entropy": nats / tokens, "entropy": entropy / tokens}

  def settle(self) -> None:
    """Nothing is under way."""

  def close(self) -> None:
    """Nothing is under way."""


def _make_measure(run: setup.Run):
  """(reference, trained, rollout) -> tokens, their nats, their entropy."""
  scorer = score.make_score(run.model, needs=frozenset({"entropy"}))

  def measure(reference, trained, rollout):
    scores = scorer(run.attach(reference, trained), rollout)
    counted = rollout.mask & (rollout.weights > 0)[:, None]
    sums = [
      jnp.where(counted, x, 0.0).sum()
      for x in (jnp.ones(counted.shape), -scores.logprobs, scores.entropy)
    ]
    return tuple(sums)

  whole = None
  if run.mesh is not None:
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
  return jax.jit(meshes.traced_for(run.mesh, measure), out_shardings=whole)
