"""Rollouts by an older policy in the real loop, on devices of their own too."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  layout,
  loop,
  metrics,
)

STEPS = 6
ALONE = experiment.Mesh(data=1, fsdp=1)

# Kills the run, nothing saved, when as many steps are written as "kill" says.
REWARD = """
import pathlib

def reward(prompts, completions, answers):
  here = pathlib.Path(__file__).parent
  kill, written = here / "kill", here / "run" / "metrics.jsonl"
  lines = written.read_bytes().count(b"\\n") if written.exists() else 0
  if kill.exists() and lines >= int(kill.read_text()):
    kill.unlink()
    raise KeyboardInterrupt
  return [float(any(c.isdigit() for c in text)) for text in completions]
"""


def _config(folder, **changes):
  (folder / "reward.py").write_text(REWARD)
  fields = {
    "name": "run",
    "runs": str(folder),
    "steps": STEPS,
    "rollout_ahead": 1,
    "prompt_length": 12,
    "mesh": ALONE,
    "method": methods.Grpo(beta=0.0),
    "reward": (f"{folder / 'reward.py'}:reward",),
    "reward_workers": 0,
    "optimizer": experiment.Optimizer(learning_rate=1e-3),
    "evaluation": experiment.Evaluation(every=3, examples=2, batch=2),
    "checkpoint": experiment.Checkpoint(every=2),
    "logging": experiment.Logging(tensorboard=False),
    "export": False,
  }
  return dataclasses.replace(
    config_file.load("tiny_addition"), **fields | changes
  )


def _rows(folder, name=metrics.METRICS):
  """What was written, without what a clock or a memory gauge said."""
  timed = ("time/", "memory/", "tokens_per_second", "seconds")
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)}
    for row in metrics.read(folder / name)
  ]


def _saved(config, folder):
  template = loop.setup.build(config).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    state, extra, step = saver.restore(template)
  return jax.device_get(state), extra, step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run on one device whose rollouts are one step old, and its config."""
  config = _config(tmp_path_factory.mktemp("whole"))
  return config, loop.train(config)


def test_each_step_trains_on_what_the_policy_before_it_sampled(whole):
  rows = _rows(whole[1])
  assert [row["staleness"] for row in rows] == [0] + [1] * (STEPS - 1)
  assert max(row["staleness_max"] for row in rows) == 1
  texts = _rows(whole[1], metrics.SAMPLES)
  assert {(row["step"], row["policy_version"]) for row in texts} == {
    (step + 1, max(0, step - 1)) for step in range(STEPS)
  }


def test_the_ratio_corrects_for_the_age_and_no_gap_is_claimed(whole):
  first, *rest = _rows(whole[1])
  assert first["sampler_gap_max"] < 1e-5 and first["clip_fraction"] == 0
  assert not any("sampler_gap_max" in row for row in rest)
  # On-policy the ratio is 1 and the loss, centred in each group, is 0.
  assert abs(first["loss"]) < 1e-6 < max(abs(row["loss"]) for row in rest)


def test_killed_while_one_waits_it_ends_with_the_same_bits(whole, tmp_path):
  config = _config(tmp_path)
  for resumed, step in enumerate((3, 4)):
    (tmp_path / "kill").write_text(str(step))
    with pytest.raises(KeyboardInterrupt):
      loop.train(config, resume=bool(resumed))
    _, extra, saved = _saved(config, tmp_path / "run")
    (waiting,) = extra["waiting"]
    assert saved < STEPS
    assert waiting["step"] == saved and waiting["version"] == saved - 1
  folder = loop.train(config, resume=True)
  chex.assert_trees_all_equal(
    _saved(config, folder)[0], _saved(whole[0], whole[1])[0]
  )
  for name in (metrics.METRICS, metrics.SAMPLES, metrics.EVALUATIONS):
    assert _rows(folder, name) == _rows(whole[1], name)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_a_sampler_with_its_own_devices_gives_the_same_curve(whole, tmp_path):
  mesh = experiment.Mesh(data=1, fsdp=2, rollout=2)
  folder = loop.train(_config(tmp_path, mesh=mesh))
  texts = [_rows(each, metrics.SAMPLES) for each in (folder, whole[1])]
  assert texts[0] == texts[1]
  for row, other in zip(_rows(folder), _rows(whole[1]), strict=True):
    for name in ("reward", "loss", "grad_norm", "entropy", "staleness"):
      np.testing.assert_allclose(row[name], other[name], atol=1e-5)
    assert row["sync/bytes"] == 4 * 82_240  # all parameters, to each device


@pytest.mark.parametrize(
  ("mesh", "line"),
  [
    ({"rollout": 4}, "leave a device to train on, got 4 of 4"),
    ({"rollout": 3}, "shares prompts_per_step = 4 evenly, got 3"),
    ({"rollout": 1, "tensor": 2}, "a multiple of mesh.tensor = 2"),
  ],
)
def test_devices_that_cannot_be_set_apart_are_one_line(mesh, line, tmp_path):
  config = _config(tmp_path, mesh=experiment.Mesh(**mesh))
  with pytest.raises(ValueError, match=line):
    layout.Layout(config, jax.devices()[:4]).parameters(None, {})


@pytest.mark.parametrize("changes", [{"rollout_ahead": -1}, {}])
def test_what_is_negative_or_needs_one_process_is_one_line(
  changes, tmp_path, monkeypatch
):
  config = _config(tmp_path, **changes)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  line = "at least 0, got -1" if changes else "must be 0 in a run of 2 proc"
  with pytest.raises(ValueError, match=f"rollout_ahead.*{line}"):
    experiment.validate(config)
    layout.Layout(config).parameters(None, {})
