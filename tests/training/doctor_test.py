"""Every check of `jaxrl doctor`: seen to pass, and seen to fail on purpose."""

import collections
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import cli
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import cache, decoder, families
from jaxrl_llm.models.weights import hf, resolve
from jaxrl_llm.rewards import registry
from jaxrl_llm.training import experiment
from jaxrl_llm.training.doctor import (
  finding,
  machine,
  model,
  subject,
  task,
)

TINY = experiment.Experiment(
  prompts_per_step=4,
  group_size=2,
  prompt_length=16,
  completion_length=4,
  model=experiment.Model(name="tiny"),
  data=experiment.Data(source="addition", digits=1, few_shot=False, size=50),
  evaluation=experiment.Evaluation(examples=8),
  reward_workers=0,
)
Usage = collections.namedtuple("Usage", "total used free")


def look(check, *, of=None, **changes):
  """The findings of one check."""
  config = dataclasses.replace(TINY, **changes)
  return list(check(of or subject.Subject(config, lambda line: None)))


def one(check, **settings):
  (found,) = look(check, **settings)
  return found


def test_a_sound_run_passes_every_check(tmp_path, capsys):
  args = f"doctor tiny_addition --runs {tmp_path} --completion-length 2"
  assert cli.main(args.split()) == 0
  lines = capsys.readouterr().out.splitlines()
  names = [line.split()[0] for line in lines]
  rewards = ["reward"] * 2
  assert names[:5] == ["devices", "mesh", "weights", "tokenizer", "data"]
  assert names[5:] == [*rewards, "gap", "disk", "memory"]
  assert all(" ok " in line for line in lines[1:]), lines
  assert not list(tmp_path.iterdir())  # nothing of the run was written


def test_what_fails_gives_code_one_and_the_rest_is_still_looked_at(
  tmp_path, capsys
):
  reward = f"{tmp_path / 'none.py'}:f"
  args = (
    f"doctor tiny_addition --model.name {tmp_path / 'no'} --reward {reward}"
  )
  assert cli.main(args.split()) == 1
  out = capsys.readouterr().out
  assert out.count("FAIL") == 2 and "is no alias" in out
  assert "there is no file" in out
  assert out.count("skipped  it needs what failed above") >= 4


def test_a_config_that_cannot_be_is_a_mistake(capsys):
  assert cli.main(["doctor", "tiny_addition", "--steps", "0"]) == 2
  assert "steps must be at least 1" in capsys.readouterr().err


# Devices and mesh.


def test_an_accelerator_that_jax_does_not_see_is_a_warning(monkeypatch):
  monkeypatch.setattr(machine, "accelerator", lambda: "a TPU (/dev/accel*)")
  found = one(machine.devices)
  assert found.status == finding.WARN and "a TPU" in found.figure
  assert "[tpu]" in found.advice
  monkeypatch.setattr(machine, "accelerator", lambda: "")
  assert one(machine.devices).status == finding.OK


def test_accelerators_are_known_by_their_files(monkeypatch):
  for pattern, name in (
    ("nvidia", "NVIDIA"),
    ("accel", "TPU"),
    ("vfio", "TPU"),
  ):
    seen = lambda path, pattern=pattern: [path] * (pattern in path)
    monkeypatch.setattr(machine.glob, "glob", seen)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert name in machine.accelerator()


def test_idle_devices_are_a_warning_that_says_how_to_use_them():
  count = len(jax.devices())
  found = one(machine.mesh, prompts_per_step=count - 1)
  assert found.status == finding.WARN
  assert f"{count - 1} of {count} used" in found.figure
  assert f"multiple of {count}" in found.advice
  assert one(machine.mesh, prompts_per_step=count).status == finding.OK


# Weights and tokenizer.


def test_a_damaged_tensor_differs_from_what_transformers_reads(tmp_path):
  pytest.importorskip("torch")
  folder = tmp_path / "model"
  resolve.load("tiny").tokenizer.save(folder)
  params = families.build(families.TINY).init(jax.random.key(0))
  hf.save(folder, families.TINY, params)
  changes = {"model": experiment.Model(name=str(folder))}
  config = dataclasses.replace(TINY, **changes)
  run = subject.Subject(config, lambda line: None)
  (found,) = look(model.weights, of=run)
  assert "from transformers" in found.figure
  assert found.status != finding.FAIL
  assert found.status == finding.WARN  # random weights in a folder know nothing
  run.loaded.params["layers"]["mlp"]["up"] *= 1.05
  (found,) = look(model.weights, of=run)
  assert found.status == finding.FAIL and "not right" in found.advice


def test_another_head_differs_from_the_float64_forward(monkeypatch):
  rolled = lambda self, params: jnp.roll(params["embed"], 1, axis=0)
  monkeypatch.setattr(decoder.Decoder, "head", rolled)
  found = one(model.weights)
  assert found.status == finding.FAIL and "float64 forward" in found.figure


def test_parameters_that_are_not_finite_are_counted():
  run = subject.Subject(TINY, lambda line: None)
  embed = run.loaded.params["embed"]
  run.loaded.params["embed"] = embed.at[3, :2].set(jnp.nan)
  (found,) = look(model.weights, of=run)
  assert found.status == finding.FAIL and "2 of them are NaN" in found.figure


def test_ids_that_the_model_does_not_have_are_found():
  run = subject.Subject(TINY, lambda line: None)
  assert one(model.tokenizer).status == finding.OK
  run.loaded.tokenizer.stop_ids = (3, 500)
  (found,) = look(model.tokenizer, of=run)
  assert found.status == finding.FAIL and "has no id 500" in found.figure


def test_chat_without_a_template_fails(monkeypatch):
  run = subject.Subject(
    dataclasses.replace(TINY, data=experiment.Data(chat=True)), print
  )

  def chat(messages):
    raise ValueError("chat needs a tokenizer with a chat template.")

  monkeypatch.setattr(run.loaded.tokenizer, "chat", chat, raising=False)
  with pytest.raises(ValueError, match="chat template"):
    look(model.tokenizer, of=run)


# Sampler and trainer.


def test_a_sampler_that_counts_positions_wrongly_is_found(monkeypatch):
  right = cache.Decode.positions
  monkeypatch.setattr(cache.Decode, "positions", lambda self: right(self) + 1)
  found = one(model.gap, mesh=experiment.Mesh(data=1, fsdp=1))
  assert found.status == finding.FAIL and "different models" in found.advice


# Data and rewards.


def test_prompts_that_are_too_long_are_counted():
  assert one(task.data).status == finding.OK
  found = one(task.data, prompt_length=5)
  assert found.status == finding.FAIL
  assert "58 of 58 are longer" in found.figure
  assert "raise prompt_length to 7" in found.advice


def test_training_on_what_is_held_out_is_a_warning():
  data = dataclasses.replace(TINY.data, eval_split="train")
  found = one(task.data, data=data)
  assert found.status == finding.WARN and " 8 held-out" in found.figure


def rewarded(tmp_path, body):
  path = tmp_path / "mine.py"
  path.write_text(f"def f(prompts, completions, answers):\n  {body}\n")
  return (f"{path}:f",)


@pytest.mark.parametrize(
  ("body", "status", "text"),
  [
    ("return [float(a in c) for a, c in zip(answers, completions)]", "ok", ""),
    ("return [1.0] * len(prompts)", "WARN", "it gives 1 to"),
    ("return [1 / len(c) for c in completions]", "FAIL", "ZeroDivisionError"),
  ],
)
def test_a_reward_of_ones_own(tmp_path, body, status, text):
  found = one(task.rewards, reward=rewarded(tmp_path, body))
  assert found.status == status and text in str(found)


def test_a_reward_that_hangs_fails(tmp_path):
  body = "import time; time.sleep(0 if completions[0] == ' 2' else 60)"
  found = one(
    task.rewards,
    reward=rewarded(tmp_path, f"{body}; return [0.0] * len(prompts)"),
    reward_workers=1,
    reward_timeout=0.2,
  )
  assert found.status == finding.FAIL and "timeout" in found.figure


def test_a_verifier_that_accepts_everything_fails(monkeypatch):
  ones = lambda prompts, completions, answers: np.ones(len(prompts))
  monkeypatch.setitem(registry._PLAIN, "exact_integer", lambda: ones)
  found = one(task.rewards)
  assert found.status == finding.FAIL and "it gives 1 to" in found.figure


def test_a_verifier_that_cannot_read_the_answers_fails(tmp_path):
  lines = '{"prompt": "Capital?", "answer": "Rome"}\n' * 20
  (tmp_path / "a.jsonl").write_text(lines)
  found = one(
    task.rewards, data=experiment.Data(source="a.jsonl", path=str(tmp_path))
  )
  assert found.status == finding.FAIL
  assert "answer must be an integer" in found.figure


# Disk and memory.


@pytest.mark.parametrize(
  ("checkpoints", "status"), [(0.5, "FAIL"), (2, "WARN"), (100, "ok")]
)
def test_a_disk_is_measured_in_checkpoints(
  tmp_path, monkeypatch, checkpoints, status
):
  state = 12 * 82_240  # bytes
  free = int(checkpoints * state)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, free))
  runs = tmp_path / "not" / "there" / "yet"
  found = one(machine.disk, runs=str(runs), export=False)
  assert found.status == status and str(tmp_path) in found.figure
  assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_fails(monkeypatch):
  def refuse(**settings):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
  found = one(machine.disk)
  assert found.status == finding.FAIL and "Permission denied" in found.figure


@pytest.mark.parametrize(
  ("available", "status", "text"),
  [
    (2**20 // 2, "FAIL", "too large"),  # the state alone
    (2**20 + 2**19, "FAIL", "raise micro_batches"),
  ],
)
def test_memory_is_compared_with_what_programs_need(
  monkeypatch, available, status, text
):
  monkeypatch.setattr(meshes, "device_bytes", lambda device: available)
  found = one(machine.memory, mesh=experiment.Mesh(data=1, fsdp=1))
  assert found.status == status and text in str(found), found


def test_sizes_are_for_people():
  sizes = [finding.size(n) for n in (0, 512, 2048, 3 * 2**20, 5.5 * 2**40)]
  assert sizes == [
    "0 bytes", "512 bytes", "2.00 KiB", "3.00 MiB", "5632.00 GiB"
  ]  # fmt: skip
