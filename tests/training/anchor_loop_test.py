"""Anchored runs: the start survives a resume, lies as the parameters, holds."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  loop,
  metrics,
  setup,
)

ANCHORED = experiment.Optimizer(
  learning_rate=5e-3, anchor=4.0, anchor_norm="l2"
)


def _config(folder, **changes):
  fields = {
    "runs": str(folder),
    "steps": 4,
    "optimizer": ANCHORED,
    "evaluation": experiment.Evaluation(examples=2, batch=2),
    "checkpoint": experiment.Checkpoint(every=2),
    "logging": experiment.Logging(tensorboard=False),
    "reward_workers": 0,
    "export": False,
    "mesh": experiment.Mesh(data=1, fsdp=1),
  }
  config = config_file.load("tiny_addition")
  return dataclasses.replace(config, **fields | changes)


def _last(folder, config):
  template = setup.build(config).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    return saver.restore(template)[0]


def _start(state):
  (found,) = [part.start for part in state.opt_state if hasattr(part, "start")]
  return found


@pytest.mark.parametrize("rank", [0, 4])
def test_a_resumed_run_has_the_same_start_to_the_bit(tmp_path, rank):
  lora = experiment.Lora(rank=rank)
  whole = _config(tmp_path / "whole", lora=lora)
  half = _config(tmp_path / "half", lora=lora)
  first = jax.device_get(setup.build(whole).init_state().params)
  one = _last(loop.train(whole), whole)
  loop.train(dataclasses.replace(half, steps=2))
  two = _last(loop.train(half, resume=True), half)
  chex.assert_trees_all_equal(one, two)
  chex.assert_trees_all_equal(_start(one), first)
  rows = metrics.read(tmp_path / "whole" / whole.name / metrics.METRICS)
  drifts = [row["drift_norm"] for row in rows]
  gap = jax.tree.map(lambda a, b: ((a - b) ** 2).sum(), one.params, first)
  size = np.sqrt(sum(jax.tree.leaves(gap)))
  np.testing.assert_allclose(drifts[-1], size, rtol=1e-5)
  assert 0 < drifts[0] < drifts[-1]


def test_on_a_mesh_the_start_is_cut_as_the_parameters(tmp_path):
  config = _config(tmp_path, mesh=experiment.Mesh(data=1, fsdp=2, tensor=2))
  state = setup.build(config).init_state()
  places = lambda tree: jax.tree.map(lambda x: x.sharding.spec, tree)
  assert places(_start(state)) == places(state.params)
  assert any(
    x != jax.sharding.PartitionSpec()
    for x in jax.tree.leaves(
      places(state.params), is_leaf=lambda x: x is not None
    )
  )
  chex.assert_trees_all_equal(_start(state), state.params)


def test_a_decay_that_would_jump_beyond_the_start_is_refused():
  jump = dataclasses.replace(ANCHORED, anchor=200.0)
  with pytest.raises(ValueError, match=r"optimizer.anchor: .* below 1, got"):
    experiment.validate(experiment.Experiment(optimizer=jump))
