"""Runs without gradients: files, learning, resume to the bit, devices."""

import dataclasses
import json
import signal

import chex
import jax
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.optimizers import anchored
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  evolution,
  experiment,
  inference,
  loop,
  metrics,
  population,
  setup,
)

STEPS = 4
ES = methods.EsAwd(sigma=0.05, alpha=0.05, population=6, lam=0.1)
ALONE = experiment.Mesh(data=1, fsdp=1)


def _config(folder, **changes):
  fields = {
    "name": "run",
    "runs": str(folder),
    "steps": STEPS,
    "method": ES,
    "mesh": ALONE,
    "reward": ("format:[0-9]",),
    "reward_workers": 0,
    "evaluation": experiment.Evaluation(examples=2, batch=2),
    "checkpoint": experiment.Checkpoint(every=2),
    "logging": experiment.Logging(tensorboard=False),
    "export": False,
  }
  config = config_file.load("tiny_addition")
  return dataclasses.replace(config, **fields | changes)


def _rows(folder, file=metrics.METRICS):
  timed = ("time/", "memory/", "tokens_per_second", "seconds")
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)}
    for row in metrics.read(folder / file)
  ]


def _saved(config, folder):
  template = setup.build(config).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    state, extra, step = saver.restore(template)
  return jax.device_get(state), extra, step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  config = _config(tmp_path_factory.mktemp("whole"), export=True)
  return config, loop.train(config)


def test_a_user_sees_the_same_files(whole):
  config, folder = whole
  names = {path.name for path in folder.iterdir()}
  wanted = "config.json metrics.jsonl evaluations.jsonl samples.jsonl"
  assert names >= {*wanted.split(), "checkpoints", "report.html", "export"}
  saved = json.loads((folder / "config.json").read_text())["method"]
  assert saved["name"] == "EsAwd" and saved["population"] == 6
  page = (folder / "report.html").read_text()
  assert "4 prompts x 6 members" in page and "drift" in page
  assert [row["step"] for row in _rows(folder, metrics.EVALUATIONS)] == [0, 4]
  exported = inference.evaluate(config, weights=str(folder / "export"))
  last = metrics.read(folder / metrics.EVALUATIONS)[-1]
  assert exported.metrics["reward"] == last["reward"]


def test_every_step_says_fitness_drift_and_update(whole):
  rows = metrics.read(whole[1] / metrics.METRICS)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  wanted = (
    "reward fitness/mean fitness/max fitness/std fitness/failed drift_norm"
    " update_norm length time/rollout time/reward time/train tokens_per_second"
  ).split()
  for row in rows:
    assert all(np.isfinite(row[name]) for name in wanted)
    np.testing.assert_allclose(row["reward"], row["fitness/mean"], atol=1e-6)
    assert row["fitness/max"] >= row["fitness/mean"]
    assert (row["update_norm"] > 0) == (row["fitness/std"] > 0)
  state, _, _ = _saved(*whole)
  drift = anchored.drift_norm(state.params, state.opt_state)
  np.testing.assert_allclose(rows[-1]["drift_norm"], drift, rtol=1e-5)
  start = setup.build(whole[0]).init_state().params
  chex.assert_trees_all_equal(state.opt_state, jax.device_get(start))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path, rank):
  config, folder = whole
  if rank:
    few = {"lora": experiment.Lora(rank=rank), "steps": 3}
    config = _config(tmp_path / "whole", **few)
    folder = loop.train(config)
  other = dataclasses.replace(config, runs=str(tmp_path / "half"))
  loop.train(dataclasses.replace(other, steps=2, export=False))
  resumed = loop.train(other, resume=True)
  one, two = _saved(config, folder), _saved(other, resumed)
  chex.assert_trees_all_equal(one[0], two[0])
  assert one[1:] == two[1:] and int(one[0].step) == config.steps
  assert _rows(folder) == _rows(resumed)
  assert _rows(folder, metrics.SAMPLES) == _rows(resumed, metrics.SAMPLES)


def _fitness(config, steps=1):
  """[steps, P] of the members, and the parameters after the last step."""
  found = []
  with setup.make_pool(config) as pool:
    one = population.Learner(setup.build(config), pool)
    one.begin()
    update = one._train_step.result()

    class Seen:
      def result(self):
        return self

      def __call__(self, state, fitness, reference):
        found.append(np.asarray(fitness))
        return update(state, fitness, reference)

    one._train_step = Seen()
    for step in range(steps):
      one.step(step)
  return np.stack(found), jax.device_get(one.state.params)


def test_fitness_is_the_reward_of_each_perturbed_model(tmp_path):
  config = _config(tmp_path)
  (found,), _ = _fitness(config)
  run = setup.build(config)
  params = run.init_state().params
  problems = next(run.batches)
  with setup.make_pool(config) as pool:
    for seed, fitness in zip(evolution.seeds(0, 0, 6), found, strict=True):
      member = run.method.perturb(params, seed)
      texts = run.greedy(member, problems, 0).texts
      scored = pool.score([""] * 4, texts, [p.answer for p in problems])
      np.testing.assert_allclose(fitness, scored.rewards.mean(), rtol=1e-6)
  assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("rank", [0, 2])
def test_members_side_by_side_are_those_one_after_another(tmp_path, rank):
  config = _config(tmp_path, lora=experiment.Lora(rank=rank))
  several = dataclasses.replace(ES, members_at_once=3)
  one = _fitness(config, 2)
  two = _fitness(dataclasses.replace(config, method=several), 2)
  chex.assert_trees_all_close(one, two, atol=1e-6)


def test_weights_in_bfloat16_stay_so_and_vectors_in_float32(tmp_path):
  low = dataclasses.replace(ES, weights="bfloat16")
  fitness, params = _fitness(_config(tmp_path, method=low))
  assert np.isfinite(fitness).all()
  kinds = jax.tree.map(lambda leaf: (leaf.ndim, leaf.dtype.name), params)
  assert (
    kinds["embed"] == (2, "bfloat16") and kinds["final_norm"][1] == "float32"
  )


def test_on_a_mesh_the_members_and_the_step_are_those_of_one_device(tmp_path):
  config = _config(tmp_path)
  mesh = experiment.Mesh(data=1, fsdp=2, tensor=2)
  one, many = _fitness(config), _fitness(dataclasses.replace(config, mesh=mesh))
  np.testing.assert_allclose(one[0], many[0], atol=1e-6)
  chex.assert_trees_all_close(one[1], many[1], atol=1e-5)


def test_members_side_by_side_are_refused_on_a_mesh(tmp_path):
  config = _config(
    tmp_path,
    method=dataclasses.replace(ES, members_at_once=2),
    mesh=experiment.Mesh(data=2, fsdp=1),
  )
  with pytest.raises(ValueError, match="must be 1 on a mesh of 2 devices"):
    setup.build(config)


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"mini_batches": 2}, "mini_batches must be 1 with EsAwd, got 2"),
    ({"epochs": 2}, "epochs must be 1"),
    ({"rollout_ahead": 1}, "rollout_ahead must be 0"),
    ({"mesh": experiment.Mesh(rollout=1)}, "mesh.rollout must be 0"),
    (
      {"optimizer": experiment.Optimizer(anchor=1.0)},
      "optimizer.anchor must be 0 .* method.lam",
    ),
  ],
)
def test_what_has_no_meaning_without_gradients_is_refused(
  tmp_path, changes, line
):
  with pytest.raises(ValueError, match=line):
    experiment.validate(_config(tmp_path, **changes))


REWARD = """
import os, pathlib, signal

def reward(prompts, completions, answers):
  written = pathlib.Path(__file__).parent / "run" / "metrics.jsonl"
  if written.exists() and len(written.read_text().splitlines()) == 1:
    os.kill(os.getpid(), signal.SIGTERM)
  return [float("nan") if len(text) % 2 else 1.0 for text in completions]
"""


def test_a_signal_saves_first_and_what_cannot_be_scored_is_left_out(tmp_path):
  (tmp_path / "reward.py").write_text(REWARD)
  reward = (f"{tmp_path / 'reward.py'}:reward",)
  evaluation = experiment.Evaluation(examples=2, batch=2)
  config = _config(tmp_path, reward=reward, evaluation=evaluation)
  with pytest.raises(loop.Stopped) as stopped:
    loop.train(config)
  assert stopped.value.signum == signal.SIGTERM and stopped.value.step == 2
  assert _saved(config, tmp_path / "run")[2] == 2
  rows = _rows(tmp_path / "run")
  known = [row for row in rows if row["fitness/failed"] < 1]
  assert all(row["fitness/mean"] == 1.0 for row in known)
  assert all(row["fitness/std"] == 0.0 for row in rows)


def test_a_run_by_gradients_cannot_go_on_without(whole, tmp_path):
  config = dataclasses.replace(whole[0], method=methods.Dapo(), steps=STEPS + 1)
  with pytest.raises(ValueError, match="made with another configuration"):
    loop.train(config, resume=True)
