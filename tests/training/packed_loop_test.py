"""--pack in the real loop and in a plan."""

import dataclasses
import json

import pytest

from jaxrl_llm import methods
from jaxrl_llm.rollout import packing
from jaxrl_llm.training import absent, config_file, experiment, loop

TINY = dataclasses.replace(
  config_file.load("tiny_addition"),
  pack=True,
  method=methods.DrGrpo(),
  steps=2,
  completion_length=12,
  evaluation=experiment.Evaluation(examples=1, batch=1),
  checkpoint=experiment.Checkpoint(every=1),
  export=False,
)


def _rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _train(runs, name, **changes):
  resume = changes.pop("resume", False)
  config = dataclasses.replace(TINY, runs=str(runs), name=name, **changes)
  return _rows(loop.train(config, resume=resume))


def test_a_packed_run_that_crashed_resumes_to_the_same_numbers(
  tmp_path, monkeypatch
):
  packed = _train(tmp_path, "packed")
  assert all(0.5 < row["packing/efficiency"] <= 1 for row in packed)
  assert packed[0]["packing/tokens"] < 1
  pack = packing.Packer.__call__
  calls = []

  def crash(self, rollout):
    calls.append(1)
    if len(calls) == 2:
      raise RuntimeError("power cut")
    return pack(self, rollout)

  monkeypatch.setattr(packing.Packer, "__call__", crash)
  with pytest.raises(RuntimeError, match="power cut"):
    _train(tmp_path, "crashed")
  resumed = _train(tmp_path, "crashed", resume=True)
  assert len(calls) == 3  # the last step twice
  for one, other in zip(packed, resumed, strict=True):
    for name in ("reward", "grad_norm", "entropy", "packing/efficiency"):
      assert one[name] == other[name], name


def test_a_plan_is_of_the_largest_size():
  config = dataclasses.replace(
    TINY,
    micro_batches=2,
    mesh=experiment.Mesh(data=2),
  )
  run = absent.AbsentRun(config, 2)
  traces = dict(run.programs())
  # Of four prompts each block has one.
  group = TINY.prompt_length + TINY.group_size * (TINY.completion_length - 1)
  for name, blocks in (("train step", 4), ("score pass", 2)):
    shapes = [x.shape for x in traces[name]().jaxpr.in_avals]
    assert (blocks, group) in shapes, name
