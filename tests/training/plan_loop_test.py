"""Plans in the real loop on the tiny model: refill, resume, greedy baseline."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  loop,
  metrics,
)

STEPS = 10

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


def _config(folder, method, **changes):
  (folder / "reward.py").write_text(REWARD)
  fields = {
    "name": "run",
    "runs": str(folder),
    "steps": STEPS,
    "prompts_per_step": 2,
    "prompt_length": 12,
    "method": method,
    "reward": (f"{folder / 'reward.py'}:reward",),
    "reward_workers": 0,
    "optimizer": experiment.Optimizer(learning_rate=1e-3),
    "evaluation": experiment.Evaluation(examples=2, batch=2),
    "checkpoint": experiment.Checkpoint(every=1),
    "logging": experiment.Logging(tensorboard=False),
    "export": False,
  }
  return dataclasses.replace(
    config_file.load("tiny_addition"), **fields | changes
  )


def _rows(folder):
  """What was written, without what a clock or a memory gauge said."""
  timed = ("time/", "memory/", "tokens_per_second")
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)}
    for row in metrics.read(folder / metrics.METRICS)
  ]


def _saved(config, folder):
  template = loop.setup.build(config).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    state, extra, step = saver.restore(template)
  return jax.device_get(state), extra, step


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
  """A run with dynamic sampling, and its config."""
  folder = tmp_path_factory.mktemp("whole")
  config = _config(folder, methods.DynamicSampling(max_rounds=3))
  return config, loop.train(config)


def test_every_step_trains_on_groups_with_a_signal(dynamic):
  rows = _rows(dynamic[1])
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
  used = [2 - row["plan/padded"] for row in rows]
  for before, row, count in zip([{}, *rows], rows, used, strict=False):
    assert row["plan/rounds"] <= 3
    waited = before.get("plan/surplus", 0)
    assert row["plan/stale"] == waited
    assert count + row["plan/surplus"] == waited + row["plan/kept"]
    assert row["plan/kept"] + row["plan/dropped"] == 2 * row["plan/rounds"]
    assert (row["grad_norm"] > 1e-3) == (count > 0)
  assert max(row["plan/rounds"] for row in rows) > 1
  assert max(row["plan/stale"] for row in rows) == 1


def test_the_rewards_that_are_shown_are_of_everything_sampled(dynamic):
  """Kept groups are half right by choice; the policy is not."""
  shares = [
    row["plan/kept"] / (2 * row["plan/rounds"]) for row in _rows(dynamic[1])
  ]
  shown = [1 - row["zero_variance"] for row in _rows(dynamic[1])]
  np.testing.assert_allclose(shown, shares, atol=1e-6)


def test_old_log_probs_of_fresh_rows_are_exact_and_the_gap_says_so(dynamic):
  assert max(row["sampler_gap_max"] for row in _rows(dynamic[1])) < 1e-4


def test_two_rounds_of_a_step_and_two_steps_share_no_noise(dynamic):
  """Contract 2; equal prompts, so that only the noise tells rows apart."""
  run = loop.setup.build(dynamic[0])
  params = run.init_state().params
  problem = run.held_out[0]

  def tokens(step, first_id):
    samples = run.collect(params, [problem] * 2, step, first_id=first_id)
    return [tuple(row) for row in samples.generation.completions]

  first, second, later = tokens(0, 0), tokens(0, 8), tokens(1, 0)
  assert len({*first, *second, *later}) == 24
  assert tokens(0, 4)[:4] == first[4:] and tokens(0, 4)[4:] == second[:4]


def test_killed_with_a_surplus_it_ends_with_the_same_bits(dynamic, tmp_path):
  whole, folder = dynamic
  waiting = [
    row["step"]
    for row in _rows(folder)
    if row["plan/surplus"] and row["step"] < STEPS
  ]
  config = _config(tmp_path, whole.method)
  for step in (waiting[0], waiting[-1]):
    (tmp_path / "kill").write_text(str(step))
    with pytest.raises(KeyboardInterrupt):
      loop.train(config, resume=step != waiting[0])
    saved = _saved(config, tmp_path / "run")
    assert (
      saved[2] == step and len(saved[1]["plan"]["surplus"]["problems"]) == 1
    )
  loop.train(config, resume=True)
  one, two = _saved(whole, folder), _saved(config, tmp_path / "run")
  chex.assert_trees_all_equal(one[0], two[0])
  np.testing.assert_equal(one[1:], two[1:])
  assert _rows(folder) == _rows(tmp_path / "run")
  samples = [path / metrics.SAMPLES for path in (folder, tmp_path / "run")]
  assert samples[0].read_text() == samples[1].read_text()


def test_another_plan_cannot_go_on(dynamic):
  config, folder = dynamic
  before = (folder / "config.json").read_text()
  other = dataclasses.replace(config, method=methods.Grpo(), steps=STEPS + 1)
  with pytest.raises(ValueError, match="remembers inner, surplus, the method"):
    loop.train(other, resume=True)
  assert (folder / "config.json").read_text() == before


def test_remax_trains_groups_of_one_against_greedy_decoding(tmp_path):
  config = _config(
    tmp_path,
    methods.Remax(),
    steps=4,
    prompts_per_step=8,
    group_size=1,
    checkpoint=experiment.Checkpoint(every=0),
  )
  folder = loop.train(config)
  rows = _rows(folder)
  assert json.loads((folder / "config.json").read_text())["group_size"] == 1
  assert all(0 <= row["plan/greedy_reward"] <= 1 for row in rows)
  assert all(np.isfinite(row["loss"]) for row in rows)
  # Where no completion differs from the greedy one there is no gradient but
  # that of the divergence.
  assert max(row["grad_norm"] for row in rows) > 1e-2
  assert max(row["sampler_gap_max"] for row in rows) < 1e-4


@pytest.mark.parametrize(
  ("method", "least"),
  [
    (methods.Grpo(), 2),
    (methods.DynamicSampling(), 2),
    (methods.Remax(), 1),
    (methods.DynamicSampling(method=methods.Remax()), 1),
    (methods.SoftOverlong(method=methods.ReinforcePp()), 1),
  ],
)
def test_a_group_of_one_is_for_methods_that_compare_no_siblings(method, least):
  config = dataclasses.replace(
    config_file.load("tiny_addition"), method=method, group_size=least
  )
  experiment.validate(config)
  few = dataclasses.replace(config, group_size=least - 1)
  with pytest.raises(ValueError, match=f"group_size must be at least {least}"):
    experiment.validate(few)
