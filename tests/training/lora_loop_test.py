"""Runs with adapters: what they learn, save, refuse and export."""

import dataclasses
import importlib.util
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxrl_llm import methods
from jaxrl_llm.models import cache, families, lora
from jaxrl_llm.models.weights import hf, resolve
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  inference,
  loop,
  metrics,
  setup,
)

STEPS = 16
LORA = experiment.Lora(rank=4)


def _config(folder, **changes):
  fields = {
    "runs": str(folder),
    "steps": STEPS,
    "group_size": 32,
    "lora": LORA,
    "optimizer": experiment.Optimizer(learning_rate=5e-2),
    "evaluation": experiment.Evaluation(examples=4, batch=4),
    "checkpoint": experiment.Checkpoint(every=STEPS // 2),
    "logging": experiment.Logging(tensorboard=False),
    "reward_workers": 0,
  }
  config = config_file.load("tiny_addition")
  return dataclasses.replace(config, **fields | changes)


def _alone(folder, **changes):
  """On one device."""
  return _config(folder, mesh=experiment.Mesh(data=1, fsdp=1), **changes)


def _last(folder, config):
  template = setup.build(config).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    return saver.restore(template)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  config = _config(tmp_path_factory.mktemp("runs"))
  return loop.train(config), config


def test_the_sampler_has_the_trainers_adapter_and_it_learns(trained):
  rows = metrics.read(trained[0] / metrics.METRICS)
  sums = [row["sync/checksum_sampler"] for row in rows]
  assert sums == [row["sync/checksum_trainer"] for row in rows]
  assert len(set(sums)) == STEPS
  rewards = [row["reward/format"] for row in rows]
  # A frozen head of random weights bounds what can be learnt.
  assert np.mean(rewards[-8:]) > np.mean(rewards[:3]) + 0.05
  assert rows[0]["reference_kl"] < 1e-12 < rows[-1]["reference_kl"]
  assert max(row["sampler_gap_max"] for row in rows) < 1e-4


def test_a_checkpoint_holds_the_adapter_and_not_the_base(trained):
  _, config = trained
  state, extra, step = _last(*trained)  # refuses arrays that are surplus
  held = sum(leaf.size for leaf in jax.tree.leaves(state))
  size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  base = sum(x.size for x in jax.tree.leaves(resolve.load("tiny").params))
  assert step == STEPS and extra["adapter"]["alpha"] == config.lora.alpha
  assert 3 * size <= held < 3 * size + 20 and held < base / 2


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(trained, tmp_path):
  half = _config(tmp_path, steps=STEPS // 2)
  whole = _config(tmp_path)
  loop.train(half)
  folder = loop.train(whole, resume=True)
  ours, theirs = _last(folder, whole), _last(*trained)
  chex.assert_trees_all_equal(ours[0], theirs[0])
  assert ours[1] == theirs[1]


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"lora": experiment.Lora(rank=5)}, r"made with another configuration: .*"),
    (
      {"lora": experiment.Lora(rank=4, targets=("q",))},
      "another configuration",
    ),
    ({"lora": experiment.Lora()}, "another configuration"),
    ({"lora": experiment.Lora(rank=4, alpha=8.0)}, "lora.alpha 32, this run"),
    ({"seed": 1}, "base weights [0-9a-f]+, this run has"),
  ],
)
def test_another_adapter_or_base_is_refused_at_resume(trained, changes, line):
  folder, config = trained
  changed = dataclasses.replace(config, **{"steps": STEPS + 1} | changes)
  with pytest.raises(ValueError, match=line) as error:
    loop.train(changed, resume=True)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match=line):
    inference.evaluate(changed, checkpoint=str(folder))


def test_the_export_is_the_base_plus_the_product_of_the_peft_folder(trained):
  folder, _ = trained
  words = json.loads(
    (folder / "export" / "adapter" / "adapter_config.json").read_text()
  )
  pairs = safetensors.numpy.load_file(
    folder / "export" / "adapter" / "adapter_model.safetensors"
  )
  whole = safetensors.numpy.load_file(folder / "export" / "model.safetensors")
  before = folder.parent / "base"
  hf.save(before, families.TINY, jax.device_get(resolve.load("tiny").params))
  base = safetensors.numpy.load_file(before / "model.safetensors")
  assert words["peft_type"] == "LORA" and words["r"] == 4
  modules = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
  assert sorted(words["target_modules"]) == sorted(modules)
  start, changed = "base_model.model.", set()
  for name in pairs:
    if not name.endswith(".lora_A.weight"):
      continue
    module = name.removeprefix(start).removesuffix(".lora_A.weight")
    a, b = pairs[name], pairs[f"{start}{module}.lora_B.weight"]
    assert module.split(".")[-1] in modules and a.shape[0] == b.shape[1] == 4
    wanted = base[f"{module}.weight"] + words["lora_alpha"] / 4 * b @ a
    np.testing.assert_allclose(whole[f"{module}.weight"], wanted, atol=1e-6)
    assert np.abs(wanted - base[f"{module}.weight"]).max() > 1e-3
    changed.add(f"{module}.weight")
  assert len(changed) == 7 * families.TINY.depth
  for name in whole.keys() - changed:
    np.testing.assert_array_equal(whole[name], base[name])


@pytest.mark.skipif(
  not importlib.util.find_spec("torch"), reason="torch is not installed"
)
def test_transformers_says_what_the_adapted_model_says(trained):
  import torch
  import transformers

  torch.set_num_threads(1)
  folder, config = trained
  state, _, _ = _last(*trained)
  run = setup.build(config)
  tokens = np.arange(3, 15)[None]
  rows = cache.Causal(jnp.ones(tokens.shape, bool))
  policy = run.policy(state.params)
  hidden, _ = run.model.apply(policy, tokens, rows.positions(), rows)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder / "export")
  with torch.no_grad():
    theirs = model(torch.from_numpy(tokens)).logits.numpy()
  ours = hidden @ run.model.head(policy).T
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_checkpoint_is_evaluated_as_its_export(trained):
  folder, config = trained
  one = inference.evaluate(config, checkpoint=str(folder))
  plain = dataclasses.replace(config, lora=experiment.Lora())
  two = inference.evaluate(plain, weights=str(folder / "export"))
  assert [row["completions"] for row in one.rows] == [
    row["completions"] for row in two.rows
  ]


def _one_step(config, base=None):
  """State and metrics after a step on given rewards, and the samples."""
  run = setup.build(config)
  state, frozen = run.init_state(), run.reference()
  if base is not None:
    frozen = base(frozen)
  policy = run.attach(frozen, _shaken(state.params))
  state = state.replace(params=lora.trained(policy))
  samples = run.collect(policy, next(run.batches), 0)
  rewards = np.random.default_rng(0).random(len(samples.texts))
  rollout = samples.rollout(rewards.astype(np.float32))
  state, found = run.train_step(state, rollout, frozen)
  return state, found, samples, frozen


def _shaken(adapter):
  noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(7), x.shape)
  return jax.tree.map(noise, adapter)


def test_with_a_critic_and_several_updates_the_base_stays(tmp_path):
  config = _alone(
    tmp_path, method=methods.Ppo(), mini_batches=2, epochs=2, group_size=4
  )
  state, found, _, frozen = _one_step(config)
  before = _shaken(setup.build(config).init_state().params)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before)
  assert all(jax.tree.leaves(moved))
  assert all(np.isfinite(v) for v in jax.device_get(found).values())
  assert found["grad_norm"] > 0
  chex.assert_trees_all_equal(frozen, resolve.load("tiny").params)


def test_pieces_of_a_batch_add_up(tmp_path):
  sgd = experiment.Optimizer(learning_rate=1e-3, eps=1.0)
  few = {"optimizer": sgd, "group_size": 4}
  whole = _one_step(_alone(tmp_path, **few))[0]
  cut = _one_step(_alone(tmp_path, **few, micro_batches=4))[0]
  chex.assert_trees_all_close(whole.params, cut.params, atol=1e-5, rtol=1e-5)
  chex.assert_trees_all_close(
    whole.opt_state, cut.opt_state, atol=1e-5, rtol=1e-4
  )


def test_a_base_stored_in_bfloat16_gives_the_very_numbers_of_float32(tmp_path):
  low = _alone(tmp_path, model=experiment.Model(name="tiny", dtype="bfloat16"))
  state, found, samples, frozen = _one_step(low)
  assert frozen["embed"].dtype == frozen["layers"]["mlp"]["up"].dtype
  assert frozen["embed"].dtype == jnp.bfloat16
  assert frozen["final_norm"].dtype == jnp.float32
  assert found["sync/checksum_trainer"] == samples.generation.checksum[0]
  full = resolve.load("tiny").params
  state32, found32, samples32, _ = _one_step(low, base=lambda _: full)
  chex.assert_trees_all_equal(state.params, state32.params)
  chex.assert_trees_all_equal(found, found32)
  chex.assert_trees_all_equal(samples.generation, samples32.generation)
