import glob
import json
import resource
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.training import experiment, metrics

QUIET = experiment.Logging(tensorboard=False)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, QUIET)
  writer.write(1, {"reward": jnp.float32(0.5), "count": np.int64(3)})
  assert lines(tmp_path / "metrics.jsonl") == [
    {"step": 1, "reward": 0.5, "count": 3}
  ]


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
  with metrics.MetricsWriter(tmp_path, QUIET) as writer:
    writer.write(1, {"a": float("nan"), "b": jnp.inf, "c": jnp.bfloat16(0.5)})
    writer.samples(1, [{"text": "é\n\u2028<b>", "reward": np.float32("nan")}])
  assert lines(tmp_path / "metrics.jsonl")[0] == {
      "step": 1, "a": None, "b": None, "c": 0.5
  }  # fmt: skip
  rows = metrics.read(tmp_path / "samples.jsonl")
  assert rows == [{"step": 1, "text": "é\n\u2028<b>", "reward": None}]


def test_a_quiet_writer_leaves_no_trace(tmp_path):
  folder = tmp_path / "run"
  with metrics.MetricsWriter(
    folder, experiment.Logging(), quiet=True
  ) as writer:
    writer.write(1, {"reward": 0.5})
    writer.samples(1, [{"completion": "4"}])
    writer.evaluation(1, {"accuracy": 1.0}, [{"id": 0}])
  assert not folder.exists()


def test_resuming_keeps_lines_up_to_the_step_and_drops_a_torn_one(tmp_path):
  with metrics.MetricsWriter(tmp_path, QUIET) as writer:
    for step in range(1, 6):
      writer.write(step, {"x": step})
      writer.samples(step, [{"text": str(step)}])
      writer.evaluation(step, {"accuracy": 0.1 * step}, [{"id": 7}])
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "x":')
  with metrics.MetricsWriter(tmp_path, QUIET, resume_step=3) as writer:
    writer.write(4, {"x": 40})
  xs = [row["x"] for row in lines(tmp_path / "metrics.jsonl")]
  assert xs == [1, 2, 3, 40]
  for name in ("samples", "evaluations", "evaluation_samples"):
    steps = [row["step"] for row in lines(tmp_path / f"{name}.jsonl")]
    assert steps == [1, 2, 3]
  assert not list(tmp_path.glob("*.new"))


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with metrics.MetricsWriter(tmp_path, QUIET) as writer:
    writer.write(1, {"x": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
      with pytest.raises(OSError, match="metrics.jsonl could not be") as error:
        writer.write(2, {"x" * 100: 2})
      writer.close()  # says nothing more
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "make room, then --resume" in str(error.value)
  assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 1}]


def test_resuming_at_step_zero_keeps_the_evaluation_before(tmp_path):
  with metrics.MetricsWriter(tmp_path, QUIET) as writer:
    writer.evaluation(0, {"accuracy": 0.4})
    writer.write(1, {"x": 1})
  metrics.MetricsWriter(tmp_path, QUIET, resume_step=0).close()
  assert metrics.read(tmp_path / "metrics.jsonl") == []
  assert len(metrics.read(tmp_path / "evaluations.jsonl")) == 1


def test_a_new_run_starts_new_files(tmp_path):
  for _ in range(2):
    with metrics.MetricsWriter(tmp_path, experiment.Logging()) as writer:
      writer.write(1, {"x": 1})
  assert len(lines(tmp_path / "metrics.jsonl")) == 1
  assert len(glob.glob(str(tmp_path / "events.*"))) == 1


def test_tensorboard_events_hold_the_scalars(tmp_path):
  with metrics.MetricsWriter(tmp_path, experiment.Logging()) as writer:
    writer.write(1, {"reward": 0.5, "text": "no scalar"})
    writer.evaluation(1, {"accuracy": 0.25})
  (path,) = glob.glob(str(tmp_path / "events.*"))
  content = open(path, "rb").read()
  assert b"reward" in content and b"eval/accuracy" in content
  assert b"no scalar" not in content


def test_wandb_missing_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"jaxrl-llm\[wandb\]") as error:
    metrics.MetricsWriter(tmp_path, experiment.Logging(wandb="p"))
  assert "\n" not in str(error.value)


def test_wandb_gets_numbers_and_a_resumed_run_has_the_same_id(
  tmp_path, monkeypatch
):
  seen = []
  run = types.SimpleNamespace(
    log=lambda values, step: seen.append((step, values)), finish=lambda: None
  )
  fake = types.SimpleNamespace(
    init=lambda **kwargs: seen.append(kwargs["id"]) or run
  )
  monkeypatch.setitem(sys.modules, "wandb", fake)
  logging = experiment.Logging(tensorboard=False, wandb="p")
  with metrics.MetricsWriter(tmp_path, logging) as writer:
    writer.write(1, {"reward": 0.5})
  metrics.MetricsWriter(tmp_path, logging, resume_step=1).close()
  metrics.MetricsWriter(tmp_path, logging).close()
  first, log, again, fresh = seen
  assert log == (1, {"reward": 0.5})
  assert first == again != fresh


def test_memory_tell_the_memory_of_this_process():
  before = metrics.memory()["memory/resident"]
  block = np.ones(64 * 2**20, np.uint8)
  after = metrics.memory()["memory/resident"]
  assert 60 < after - before < 80 and block[0] == 1
