"""Methods that read texts in the real loop: killed and resumed, bit by bit."""

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
  loop,
  metrics,
)

STEPS = 4

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


def _config(folder, method):
  (folder / "reward.py").write_text(REWARD)
  tiny = config_file.load("tiny_addition")
  return dataclasses.replace(
    tiny,
    name="run",
    runs=str(folder),
    steps=STEPS,
    prompts_per_step=2,
    completion_length=12,
    method=method,
    data=dataclasses.replace(tiny.data, size=4),
    reward=(f"{folder / 'reward.py'}:reward",),
    reward_workers=0,
    evaluation=experiment.Evaluation(examples=2, batch=2),
    checkpoint=experiment.Checkpoint(every=1),
    logging=experiment.Logging(tensorboard=False),
    export=False,
  )


def _saved(config):
  template = loop.setup.build(config).init_state()
  folder = f"{config.runs}/run/checkpoints"
  with checkpoint.Checkpointer(folder, keep=2) as saver:
    state, extra, step = saver.restore(template)
  return jax.device_get(state), extra, step


def _rows(folder):
  timed = ("time/", "memory/", "tokens_per_second")
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)}
    for row in metrics.read(folder / metrics.METRICS)
  ]


@pytest.mark.parametrize(
  "method",
  [methods.Numca(threshold=0), methods.Decs(judge="reward", max_rounds=2)],
  ids=["numca", "decs"],
)
def test_killed_and_resumed_it_ends_with_the_same_bits(method, tmp_path):
  (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
  whole = _config(tmp_path / "whole", method)
  folder = loop.train(whole)
  killed = _config(tmp_path / "killed", method)
  (tmp_path / "killed" / "kill").write_text("2")
  with pytest.raises(KeyboardInterrupt):
    loop.train(killed)
  resumed = loop.train(killed, resume=True)
  one, other = _saved(whole), _saved(killed)
  chex.assert_trees_all_equal(one[0], other[0])
  np.testing.assert_equal(one[1:], other[1:])
  assert _rows(folder) == _rows(resumed)
  assert one[1]["plan"] != method.build().plan.init()
