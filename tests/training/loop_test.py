"""The real loop on the tiny model: files, learning, one trace, signals."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jaxrl_llm import cli
from jaxrl_llm.models import cache, families
from jaxrl_llm.models.weights import hf
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  inference,
  loop,
  metrics,
)

STEPS = 40
COMPILE = "/jax/core/compile/backend_compile_duration"


def _config(folder, **changes):
  config = config_file.load("tiny_addition")
  small = experiment.Evaluation(every=20, examples=8, batch=4)
  fields = {"runs": str(folder), "steps": STEPS, "evaluation": small}
  return dataclasses.replace(config, **fields | changes)


@contextlib.contextmanager
def _compiles_before_each_write(monkeypatch):
  """For each step, how many programs were compiled when it was written."""
  counts, total = {}, 0

  def listen(event, duration, **_):
    nonlocal total
    total += event == COMPILE

  write = metrics.MetricsWriter.write

  def counting(self, step, values):
    counts[step] = total
    write(self, step, values)

  jax.monitoring.register_event_duration_secs_listener(listen)
  monkeypatch.setattr(metrics.MetricsWriter, "write", counting)
  try:
    yield counts
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """One whole run, and how many programs it had compiled at each step."""
  with pytest.MonkeyPatch.context() as patch:
    with _compiles_before_each_write(patch) as counts:
      folder = loop.train(_config(tmp_path_factory.mktemp("runs")))
  return folder, counts


def test_it_writes_what_it_says(trained):
  folder, _ = trained
  names = {path.name for path in folder.iterdir()}
  wanted = "config.json metrics.jsonl evaluations.jsonl samples.jsonl"
  assert names >= {*wanted.split(), "checkpoints", "report.html", "export"}
  assert any(folder.glob("events.out.tfevents.*"))
  config = json.loads((folder / "config.json").read_text())
  assert config["method"]["name"] == "Grpo" and config["steps"] == STEPS
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    assert saver.steps() == [STEPS - 5, STEPS]
  steps = [row["step"] for row in metrics.read(folder / metrics.EVALUATIONS)]
  assert steps == [0, 20, 40]


def test_every_step_has_its_metrics(trained):
  rows = metrics.read(trained[0] / metrics.METRICS)
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
  wanted = (
    "reward reward_std reward/exact_integer reward/format length truncated"
    " entropy zero_variance unscorable loss grad_norm learning_rate"
    " clip_fraction sampler_gap_mean sampler_gap_max tokens_per_second"
    " time/rollout time/reward time/train time/step memory/resident"
  ).split()
  for row in rows:
    assert set(wanted) <= set(row)
    assert all(np.isfinite(row[name]) for name in wanted)
    assert row["sampler_gap_max"] < 1e-4  # contract 3, in every step
  samples = metrics.read(trained[0] / metrics.SAMPLES)
  assert {"prompt", "completion", "answer", "reward"} <= set(samples[0])


def test_the_model_learns(trained):
  rows = metrics.read(trained[0] / metrics.METRICS)
  rewards = [row["reward/format"] for row in rows]
  assert np.mean(rewards[-8:]) > np.mean(rewards[:4]) + 0.3
  assert rows[0]["reference_kl"] == 0.0 and rows[-1]["reference_kl"] > 0.01


def test_the_second_step_compiles_nothing(trained):
  _, counts = trained
  assert counts[1] > 2  # rollout and step, at least, were counted
  # The first checkpoint, after step 5, compiles slices of replicated arrays.
  assert counts[2] == counts[1] and counts[5] == counts[1]
  # Step 20 is followed by an evaluation, whose shapes are known from step 0.
  assert counts[STEPS] == counts[6]


def test_the_report_is_one_page_with_plots_and_texts(trained):
  page = (trained[0] / "report.html").read_text()
  assert page.count("<svg") + page.count("data:image") >= 1
  assert "accuracy" in page and "reward" in page


def _own_logits(folder, tokens):
  config, params = hf.load(folder)
  model = families.build(config)
  rows = cache.Causal(jnp.ones(tokens.shape, bool))
  hidden, _ = model.apply(params, tokens, rows.positions(), rows)
  return hidden @ model.head(params).T


def test_the_export_loads_in_transformers_and_holds_the_trained_weights(
  trained,
):
  folder = trained[0] / "export"
  shape = transformers.AutoConfig.from_pretrained(folder)
  assert shape.hidden_size == 64 and shape.model_type == "llama"
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  text = "3 + 4 ="
  assert tokenizer.decode(tokenizer.encode(text)) == text
  config, params = hf.load(folder)
  run_config = _config(trained[0].parent)
  with checkpoint.Checkpointer(trained[0] / "checkpoints", keep=2) as saver:
    state, _, _ = saver.restore(loop.setup.build(run_config).init_state())
  same = jax.tree.map(np.array_equal, params, jax.device_get(state.params))
  assert config == families.TINY and all(jax.tree.leaves(same))
  if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)
    tokens = np.array([tokenizer.encode(text)])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
      theirs = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(
      _own_logits(folder, jnp.asarray(tokens)), theirs, atol=1e-4
    )


def test_the_commands_read_the_run(trained, capsys):
  folder = trained[0]
  runs = ["--runs", str(folder.parent), "--evaluation.examples", "8"]
  args = ["eval", "tiny_addition", *runs, "--checkpoint", str(folder)]
  assert cli.main(args) == 0
  last = metrics.read(folder / metrics.EVALUATIONS)[-1]
  out = capsys.readouterr().out.split()
  assert float(out[out.index("reward") + 1]) == last["reward"]
  export = str(folder / "export")
  args = ["sample", export, "--prompt", "1 + 1 =", "2 +", "--greedy"]
  assert cli.main([*args, "--max-new-tokens", "4"]) == 0
  out = capsys.readouterr().out
  assert out.startswith("1 + 1 =") and "\n2 +" in out


def test_sampling_by_name_gives_each_prompt_its_own_texts():
  def sample(prompts, **knobs):
    knobs = {"samples": 3, "seed": 1} | knobs
    return inference.sample(
      "tiny",
      prompts,
      sampling=experiment.Sampling(),
      max_new_tokens=6,
      chat=False,
      **knobs,
    )

  texts = sample(["ab", "a longer prompt"])
  assert [len(each) for each in texts] == [3, 3]
  assert len({text for each in texts for text in each}) == 6
  assert sample(["ab", "a longer prompt"]) == texts


REWARD = """
import os, pathlib, signal

def reward(prompts, completions, answers):
  here = pathlib.Path(__file__).parent
  calls = len((here / "calls").read_text()) if (here / "calls").exists() else 0
  (here / "calls").write_text("x" * (calls + 1))
  if calls == int((here / "at").read_text()):
    os.kill(os.getpid(), signal.SIGTERM)
  return [0.0] * len(completions)
"""


def _signalled(config, folder: pathlib.Path, at: int, *, resume: bool):
  """Trains until SIGTERM comes in the `at`-th call of the reward."""
  (folder / "at").write_text(str(at))
  (folder / "calls").write_text("")
  with pytest.raises(loop.Stopped) as stopped:
    loop.train(config, resume=resume)
  assert stopped.value.signum == signal.SIGTERM
  return stopped.value.step, _evaluations(config)


def _evaluations(config):
  path = pathlib.Path(config.runs) / config.name / metrics.EVALUATIONS
  return [row["step"] for row in metrics.read(path)]


def test_a_signal_is_heard_between_the_batches_of_an_evaluation(tmp_path):
  (tmp_path / "stop.py").write_text(REWARD)
  config = _config(
    tmp_path,
    steps=3,
    reward=(f"{tmp_path / 'stop.py'}:reward",),
    reward_workers=0,
    checkpoint=experiment.Checkpoint(every=0),
    evaluation=experiment.Evaluation(every=2, examples=6, batch=2),
    export=False,
  )
  trial = _calls_at_start(config, tmp_path)
  rows = 16  # calls in one training step: one a completion
  assert _signalled(config, tmp_path, trial + 1, resume=False) == (0, [])
  second = trial + 6 + 2 * rows + 1
  assert _signalled(config, tmp_path, second, resume=True) == (2, [0])
  loop.train(config, resume=True)  # owes the evaluation that was cut short
  assert _evaluations(config) == [0, 2, 3]


def _calls_at_start(config, folder) -> int:
  """How often the pool tries a function before the first step."""
  (folder / "at").write_text("-1")
  (folder / "calls").write_text("")
  with loop.setup.make_pool(config):
    return len((folder / "calls").read_text())


def test_files_of_another_run_are_left_alone(trained):
  folder, _ = trained
  before = (folder / "metrics.jsonl").read_bytes()
  with pytest.raises(ValueError, match="already holds a run"):
    loop.train(_config(folder.parent))
  assert (folder / "metrics.jsonl").read_bytes() == before
  assert os.path.exists(folder / "export")
