"""Several rewards in a run: from verifiers through the loop to the method."""

import dataclasses
import json
import types as pytypes

import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import (
  ahead,
  config_file,
  experiment,
  loop,
  metrics,
  step,
  summary,
)

# One verifier that applies to half of the rows and one that always does.
REWARDS = """
def even(prompts, completions, answers):
  return [
      float(len(c) == 4) if int(a) % 2 == 0 else None
      for c, a in zip(completions, answers)
  ]

def digits(prompts, completions, answers):
  return [100.0 * sum(x.isdigit() for x in c) for c in completions]
"""


def _config(folder, **changes):
  config = config_file.load("tiny_addition")
  fields = {
    "runs": str(folder),
    "steps": 12,
    "evaluation": experiment.Evaluation(every=0, examples=4, batch=4),
    "checkpoint": experiment.Checkpoint(every=0),
    "reward_workers": 0,
    "export": False,
  }
  return dataclasses.replace(config, **fields | changes)


def _pool(*labels, weights):
  return pytypes.SimpleNamespace(labels=labels, weights=weights)


def test_gdpo_learns_from_two_rewards_of_which_one_may_not_apply(
  tmp_path, monkeypatch
):
  (tmp_path / "verify.py").write_text(REWARDS)
  seen = []
  hand_over = summary.with_components

  def spy(*args):
    seen.append(hand_over(*args))
    return seen[-1]

  monkeypatch.setattr(summary, "with_components", spy)
  config = _config(
    tmp_path,
    method=methods.Gdpo(),
    reward=tuple(f"{tmp_path / 'verify.py'}:{n}" for n in ("even", "digits")),
    reward_weights=(1.0, 0.5),
  )
  folder = loop.train(config)
  saved = json.loads((folder / "config.json").read_text())
  assert saved["method"]["name"] == "Gdpo"
  rows = metrics.read(folder / metrics.METRICS)
  assert len(rows) == len(seen) == 12
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert all(row["unscorable"] == 0 for row in rows)
  assert max(row["grad_norm"] for row in rows) > 0
  first, last = rows[:3], rows[-3:]
  mean = lambda part: np.mean([row["reward/digits"] for row in part])  # noqa: E731
  assert mean(last) > mean(first)
  parts = seen[0].extras["reward_components"]
  assert parts.shape == (16, 2) and parts.dtype == np.float32
  missing = np.isnan(parts[:, 0])
  assert not np.isnan(parts[:, 1]).any()
  assert any(np.isnan(r.extras["reward_components"]).any() for r in seen)
  np.testing.assert_allclose(
    seen[0].rewards,
    np.where(missing, 0.0, parts[:, 0]) + 0.5 * parts[:, 1],
    rtol=1e-6,
  )
  np.testing.assert_array_equal(seen[0].weights, 1.0)


def test_an_unscorable_row_keeps_weight_0_beside_its_components():
  rollout = rollouts.make_rollout()
  rollout = rollout.replace(weights=rollout.weights.at[2].set(0.0))
  values = {
    "b": np.arange(8, dtype=np.float32),
    "a": np.full(8, np.nan, np.float32),
    "a/part": np.ones(8, np.float32),
  }
  found = summary.with_components(
    rollout, values, _pool("a", "b", weights=(2.0, 3.0))
  )
  np.testing.assert_array_equal(found.weights, rollout.weights)
  parts = found.extras["reward_components"]
  np.testing.assert_array_equal(parts[:, 1], values["b"])
  assert np.isnan(parts[:, 0]).all() and parts.shape == (8, 2)
  np.testing.assert_array_equal(
    found.extras["reward_weights"], np.tile([2.0, 3.0], (8, 1))
  )


def test_the_step_compiled_ahead_expects_these_shapes():
  example = ahead.example_rollout(2, 4, 3, 6, rewards=2)
  real = summary.with_components(
    rollouts.make_rollout(),
    {"a": np.zeros(8), "b": np.zeros(8)},
    _pool("a", "b", weights=(1, 1)),
  )
  for name in ("reward_components", "reward_weights"):
    ours, theirs = example.extras[name], real.extras[name]
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
  assert "reward_components" not in ahead.example_rollout(2, 4, 3, 6).extras


def test_components_are_cut_with_their_rows():
  rollout = rollouts.make_rollout()
  values = {"a": np.arange(8.0), "b": -np.arange(8.0)}
  rollout = summary.with_components(
    rollout, values, _pool("a", "b", weights=(1, 1))
  )
  cut = step.split(rollout, 4).extras["reward_components"]
  np.testing.assert_array_equal(cut[3, 1], [7.0, -7.0])
