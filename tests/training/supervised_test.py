"""`jaxrl sft`: the real loop on answers; its numbers against others'."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import cli, methods
from jaxrl_llm.data import answers
from jaxrl_llm.models import cache
from jaxrl_llm.models.weights import hf
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  loop,
  metrics,
  setup,
  supervised,
)

STEPS = 6
ALONE = experiment.Mesh(data=1, fsdp=1)


def _config(folder, **changes):
  config = config_file.load("tiny_addition")
  fields = {
    "runs": str(folder),
    "steps": STEPS,
    "prompts_per_step": 8,
    "mesh": ALONE,
    "method": methods.Sft(),
    "reward_workers": 0,
    "evaluation": experiment.Evaluation(every=4, examples=6, batch=3),
    "checkpoint": experiment.Checkpoint(every=2),
    "export": False,
  }
  return dataclasses.replace(config, **fields | changes)


def _final(config):
  """The state after the last step, its metrics, its evaluations."""
  folder = f"{config.runs}/{config.name}"
  run = setup.build(supervised.adapted(config))
  with checkpoint.Checkpointer(f"{folder}/checkpoints", keep=2) as saver:
    state, _, step = saver.restore(run.init_state())
  assert step == config.steps
  rows = [
    {k: v for k, v in row.items() if not k.startswith(("time", "mem", "tok"))}
    for row in metrics.read(f"{folder}/{metrics.METRICS}")
  ]
  held = metrics.read(f"{folder}/{metrics.EVALUATIONS}")
  return (
    jax.device_get(state),
    rows,
    [(row["step"], row["accuracy"], row["cross_entropy"]) for row in held],
  )


def _interrupted(config, monkeypatch, *, at, how, resume):
  """Trains until something happens while step `at` is written."""
  write = metrics.MetricsWriter.write

  def broken(self, step, values):
    write(self, step, values)
    if step == at:
      how()

  with monkeypatch.context() as patch:
    patch.setattr(metrics.MetricsWriter, "write", broken)
    with pytest.raises((loop.Stopped, KeyboardInterrupt)):
      loop.train(config, resume=resume)


def _killed():
  raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """One whole run of EKSFT, whose coefficients are a state too."""
  config = _config(
    tmp_path_factory.mktemp("runs"),
    method=methods.Eksft(adjust=True, ratio=0.3),
    micro_batches=2,
    export=True,
  )
  return config, loop.train(config)


def test_it_learns_and_leaves_what_a_run_leaves(trained):
  config, folder = trained
  rows = metrics.read(folder / metrics.METRICS)
  assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"] - 0.3
  assert not any("gap" in name or "reward" in name for name in rows[0])
  assert rows[0]["selected_kl"] == 0.0 < rows[-1]["selected_kl"]
  held = metrics.read(folder / metrics.EVALUATIONS)
  assert [row["step"] for row in held] == [0, 4, STEPS]
  assert held[-1]["cross_entropy"] < held[0]["cross_entropy"] - 0.3
  plain = json.loads((folder / "config.json").read_text())
  assert plain["method"]["name"] == "Eksft" and plain["group_size"] == 1
  assert "cross-entropy" in (folder / "report.html").read_text()
  shape, _ = hf.load(folder / "export")
  assert shape == setup.build(supervised.adapted(config)).loaded.config


def test_stopped_killed_and_resumed_it_ends_with_the_same_bits(
  trained, tmp_path, monkeypatch
):
  config = dataclasses.replace(trained[0], runs=str(tmp_path), export=False)
  stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
  _interrupted(config, monkeypatch, at=1, how=stop, resume=False)
  _interrupted(config, monkeypatch, at=3, how=_killed, resume=True)
  assert loop.train(config, resume=True)
  ours, theirs = _final(config), _final(trained[0])
  jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
  assert ours[1:] == theirs[1:]


def _one_update(mesh, **changes):
  """Change of the parameters in one step of plain descent."""
  descent = experiment.Optimizer(learning_rate=1.0, eps=1.0, max_grad_norm=0.0)
  config = _config("unused", mesh=mesh, optimizer=descent, **changes)
  run = setup.build(supervised.adapted(config))
  student = supervised.Learner(run)
  before = jax.device_get(student.state.params)
  found = student.step(0).metrics
  held = student.held_out()
  change = jax.tree.map(
    np.subtract, jax.device_get(student.state.params), before
  )
  return change, found, held


def test_packed_pieces_on_a_mesh_learn_what_one_device_does():
  method = methods.Eksft(ratio=0.3, least_kl=0.0)
  expected = _one_update(ALONE, method=method)
  cut = experiment.Mesh(fsdp=2, tensor=2)
  got = _one_update(cut, method=method, micro_batches=2, pack=True)
  for one, other in zip(got[::2], expected[::2], strict=True):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
      one,
      other,
    )
  np.testing.assert_allclose(got[1]["loss"], expected[1]["loss"], rtol=1e-5)


def test_an_adapter_learns_beside_a_frozen_base(tmp_path):
  config = _config(tmp_path, lora=experiment.Lora(rank=4))
  student = supervised.Learner(setup.build(supervised.adapted(config)))
  before = student.held_out()["cross_entropy"]
  for step in range(3):
    student.step(step)
  names = {
    path[-1].key for path, _ in jax.tree.leaves_with_path(student.state.params)
  }
  assert len(names) == 2  # the two small matrices
  assert student.held_out()["cross_entropy"] < before


@functools.cache
def _batch():
  """A model, its parameters and four answers of different lengths."""
  run = setup.build(supervised.adapted(_config("unused", completion_length=8)))
  texts = [" 7", " 12 =", "", " 100000"]
  tokenizer = run.loaded.tokenizer
  examples = setup.examples(run.config, tokenizer, ())
  rows = [
    answers.Example(
      i, tuple(tokenizer.encode(f"{i} + 3 =")), (*tokenizer.encode(t), 3)
    )
    for i, t in enumerate(texts)
  ]
  return run, rows, examples.rollout(rows)


def _ours():
  """Loss and gradient by the parts that the train step is made of."""
  run, _, rollout = _batch()
  method = methods.Sft().build()
  scorer = setup.score.make_score(run.model)
  weights = method.weighting(rollout.mask, rollout.weights)

  def loss(params):
    scores = scorer(params, rollout)
    return method.objective(scores, rollout, None, weights)[0]

  return jax.jit(jax.value_and_grad(loss))(jax.device_get(run.loaded.params))


def test_loss_and_gradient_are_those_of_cross_entropy_by_hand():
  run, rows, _ = _batch()

  def loss(params):
    total, count = 0.0, 0
    for row in rows:  # one by one, without padding
      tokens = jnp.array([row.prompt + row.answer])
      cells = cache.Causal(jnp.ones(tokens.shape, bool))
      hidden, _ = run.model.apply(params, tokens, cells.positions(), cells)
      logits = hidden[0] @ run.model.head(params).T
      for at, token in enumerate(row.answer, len(row.prompt) - 1):
        total -= logits[at, token] - jax.nn.logsumexp(logits[at])
        count += 1
    return total / count

  params = jax.device_get(run.loaded.params)
  expected = jax.jit(jax.value_and_grad(loss))(params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    _ours(),
    expected,
  )


def test_loss_and_gradient_are_those_of_transformers(tmp_path):
  torch = pytest.importorskip("torch")
  import transformers

  torch.set_num_threads(1)
  run, rows, _ = _batch()
  params = jax.device_get(run.loaded.params)
  hf.save(tmp_path, run.loaded.config, params)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, torch_dtype=torch.float32
  )
  width = max(len(row.prompt + row.answer) for row in rows)
  ids, labels, mask = (np.zeros((len(rows), width), int) for _ in range(3))
  labels[:] = -100  # what transformers leaves out
  for i, row in enumerate(rows):
    end = len(row.prompt + row.answer)
    ids[i, :end], mask[i, :end] = row.prompt + row.answer, 1
    labels[i, len(row.prompt) : end] = row.answer
  out = theirs(
    input_ids=torch.tensor(ids),
    attention_mask=torch.tensor(mask),
    labels=torch.tensor(labels),
  )
  out.loss.backward()
  loss, grads = _ours()
  np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-4)
  embedding = theirs.get_input_embeddings().weight.grad.numpy()
  np.testing.assert_allclose(grads["embed"], embedding, rtol=1e-4, atol=1e-6)


def test_one_config_serves_both_commands():
  config = _config(
    "unused",
    group_size=8,
    rollout_ahead=2,
    mesh=experiment.Mesh(rollout=2),
    sampling=experiment.Sampling(temperature=0.7, stop=("!",)),
    data=experiment.Data(source="addition", size=50, epochs=3),
  )
  found = supervised.adapted(config)
  assert (found.group_size, found.rollout_ahead, found.mesh.rollout) == (
    1,
    0,
    0,
  )
  assert found.sampling == experiment.Sampling(stop=("!",))
  assert found.evaluation.sampling.stop == ("!",)
  assert found.steps == 19  # 3 passes over 50 examples, 8 a step
  other = dataclasses.replace(config, method=methods.Grpo())
  assert supervised.adapted(other) is other


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (["train", "--method", "eksft"], "`jaxrl sft CONFIG --method eksft`"),
    (["sft", "--method", "grpo"], "`jaxrl train CONFIG --method grpo`"),
    (["plan", "--method", "sft"], "`jaxrl sft CONFIG --method sft`"),
    (["train", "--data.epochs", "2"], "data.epochs must be 0"),
    (["sft", "--data.epochs", "-2"], "data.epochs must be at least 0"),
    (
      ["sft", "--completion-length", "2"],
      "raise completion_length to at least",
    ),
    (["sft", "--data.source", "countdown"], "has no answer to learn from"),
    (["sft", "--method.ratio", "2"], "unknown option --method.ratio"),
  ],
)
def test_mistakes_end_in_one_line(args, words, capsys, tmp_path):
  command, *rest = args
  code = cli.main([command, "tiny_addition", "--runs", str(tmp_path), *rest])
  err = capsys.readouterr().err
  assert code == 2 and words in err and err.count("\n") == 1


def test_the_command_takes_sft_where_the_config_names_another_method(
  tmp_path, capsys
):
  args = ["sft", "tiny_addition", "--runs", str(tmp_path), "--steps", "1"]
  args += ["--evaluation.examples", "2", "--no-export", "--reward-workers", "0"]
  args += ["--mesh.data", "1", "--mesh.fsdp", "1"]
  assert cli.main(args) == 0
  plain = json.loads((tmp_path / "tiny_addition" / "config.json").read_text())
  assert plain["method"] == {"name": "Sft"}
  assert "cross-entropy" in capsys.readouterr().out
