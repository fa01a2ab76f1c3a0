"""A critic beside the policy: contracts 5 and 6, and who may touch what."""

import dataclasses
import functools
import json

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import methods
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import families
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import (
  checkpoint,
  config_file,
  experiment,
  heads,
  inference,
  loop,
  metrics,
  score,
  setup,
  state,
  step,
)

V, S, T, G, B, D = 32, 3, 5, 4, 4, 16
SMALL = dataclasses.replace(
  families.TINY, vocab_size=V, width=D, heads=2, head_dim=8, mlp_width=16
)
PPO = methods.Ppo(lam=0.95, value_clip=0.2)
SHARED = methods.Ppo(trunk_gradient=1.0, whiten=False)


@functools.cache
def _model():
  model = families.build(SMALL)
  params = model.init(jax.random.key(0))
  return model, params | {"embed": params["embed"] * 20}


@functools.cache
def _rollout():
  """Rows of different lengths; row 5 is dropped."""
  rollout = rollouts.make_rollout(
    groups=B, group_size=G, length=T, prompt_length=S, vocab_size=V
  )
  return rollout.replace(
    weights=rollout.weights.at[5].set(0.0), ref_logprobs=None
  )


def _critic(method, make=lambda rate: optax.sgd(0.1)):
  # Plain descent: the change of the parameters is the gradient, times -rate.
  return heads.of_method(method, _model()[0], make)


def _start(method, values):
  """A state whose critic has an opinion already."""
  start = state.init_state(_model()[1], method, optax.sgd(1.0), head=values)
  weight = 0.1 * jax.random.normal(jax.random.key(3), (D,))
  return start.replace(head_params={"weight": weight, "bias": jnp.float32(0.2)})


@functools.cache
def _update(config, devices=1, reference=False, **knobs):
  method = config.build()
  values = _critic(method)
  scorer = score.make_score(_model()[0], needs=method.needs, head=method.head)
  train_step = step.make_train_step(
    scorer, method, optax.sgd(1.0), head=values, **knobs
  )
  mesh = meshes.make_mesh(B, devices=jax.devices()[:devices])
  assert (mesh.size if mesh else 1) == devices
  start = _start(method, values)
  frozen = meshes.replicate(start.params, mesh) if reference else None
  new, found = jax.jit(
    train_step, compiler_options={"xla_backend_optimization_level": 0}
  )(meshes.replicate(start, mesh), meshes.place_rows(_rollout(), mesh), frozen)
  now, before = (
    (x.params, x.head_params) for x in (jax.device_get(new), start)
  )
  return jax.tree.map(jnp.subtract, now, before), jax.device_get(found)


class SamePiecesTest(chex.TestCase):
  """Contract 5, for a method with a critic."""

  @parameterized.parameters(
    (PPO, 2, 1), (PPO, 8, 2), (PPO, 1, 4), (SHARED, 8, 4)
  )
  def test_micro_batches_and_devices_add_up(self, config, micro, devices):
    change, found = _update(config)
    cut, cut_found = _update(config, devices, micro_batches=micro)
    chex.assert_trees_all_close(cut, change, atol=1e-5)
    chex.assert_trees_all_close(cut_found, found, atol=1e-5, rtol=1e-5)
    for part in change:
      self.assertGreater(optax.tree.norm(part), 1e-2)

  def test_several_updates_move_the_values_away_from_the_old_ones(self):
    change, found = _update(PPO, mini_batches=2, epochs=2, micro_batches=2)
    chex.assert_tree_all_finite((change, found))
    self.assertNotEqual(found["value_loss"], _update(PPO)[1]["value_loss"])


class WhoLearnsWhatTest(chex.TestCase):
  def test_the_loss_of_the_critic_leaves_the_policy_alone(self):
    policy, head = _update(PPO)[0]
    louder = dataclasses.replace(PPO, value_coef=3.0)
    other_policy, other_head = _update(louder)[0]
    chex.assert_trees_all_close(other_policy, policy, atol=1e-7)
    tripled = jax.tree.map(lambda x: 3.0 * x, head)
    chex.assert_trees_all_close(other_head, tripled, rtol=1e-5, atol=1e-7)

  def test_a_shared_trunk_feels_it(self):
    alone = dataclasses.replace(SHARED, trunk_gradient=0.0)
    (policy, head), (other, other_head) = _update(SHARED)[0], _update(alone)[0]
    chex.assert_trees_all_close(head, other_head, atol=1e-6)
    gap = jax.tree.map(jnp.subtract, policy, other)
    self.assertGreater(optax.tree.norm(gap), 1e-3)

  def test_descent_brings_the_values_to_the_returns(self):
    """The gradient of the head by hand: mean of (v - R) h over tokens."""
    config = methods.Ppo(value_clip=float("inf"))
    rollout, (model, params) = _rollout(), _model()
    method = config.build()
    head = _start(method, _critic(method)).head_params
    hidden = score.completion_hidden(model, params, rollout)
    values = hidden @ head["weight"] + head["bias"]
    counted = rollout.mask & (rollout.weights > 0)[:, None]
    # gamma = lam = 1: the return of each token is the outcome.
    error = jnp.where(counted, values - rollout.rewards[:, None], 0.0)
    error = error / counted.sum()
    (_, change), found = _update(config)
    np.testing.assert_allclose(
      change["weight"],
      -0.1 * jnp.einsum("nt,ntd->d", error, hidden),
      rtol=1e-4,
      atol=1e-6,
    )
    np.testing.assert_allclose(change["bias"], -0.1 * error.sum(), rtol=1e-4)
    np.testing.assert_allclose(
      found["value_loss"], 0.5 * (error**2).sum() * counted.sum(), rtol=1e-4
    )
    returns = jnp.broadcast_to(rollout.rewards[:, None], counted.shape)
    np.testing.assert_allclose(
      found["return_mean"], returns[counted].mean(), rtol=1e-5
    )

  def test_its_loss_falls_on_a_policy_that_stands_still(self):
    method = PPO.build()
    values = _critic(method, lambda rate: optax.adam(0.02))
    still = optax.set_to_zero()
    scorer = score.make_score(_model()[0], needs=method.needs, head=method.head)
    train_step = jax.jit(
      step.make_train_step(scorer, method, still, head=values)
    )
    now = state.init_state(_model()[1], method, still, head=values)
    rows = []
    for _ in range(60):
      now, found = train_step(now, _rollout(), None)
      rows.append(jax.device_get(found))
    chex.assert_trees_all_equal(now.params, _model()[1])
    self.assertLess(rows[-1]["value_loss"], 0.4 * rows[0]["value_loss"])
    self.assertEqual(rows[0]["explained_variance"], 0.0)
    self.assertGreater(rows[-1]["explained_variance"], 0.4)

  def test_the_reference_has_no_critic(self):
    _, found = _update(dataclasses.replace(PPO, beta=0.1), reference=True)
    self.assertTrue(np.isfinite(found["loss"]))

  def test_without_a_critic_the_state_has_no_trace_of_it(self):
    method = methods.Grpo(beta=0.0).build()
    start = state.init_state(_model()[1], method, optax.sgd(1.0))
    self.assertEqual(jax.tree.leaves(start.head_params), [])
    self.assertEqual(jax.tree.leaves(start.head_opt_state), [])

  @parameterized.parameters((PPO, False), (methods.DrGrpo(), True))
  def test_a_critic_goes_with_a_method_that_needs_one(self, config, given):
    with self.assertRaisesRegex(ValueError, "head must be given"):
      step.make_train_step(
        score.make_score(_model()[0]),
        config.build(),
        optax.sgd(1.0),
        head=_critic(PPO.build()) if given else None,
      )

  @parameterized.parameters(
    (PPO, {"head": None}), (methods.DrGrpo(), {"needs": {"values"}})
  )
  def test_a_need_for_values_goes_with_a_head(self, config, change):
    with self.assertRaisesRegex(ValueError, "head goes with"):
      dataclasses.replace(config.build(), **change)


STEPS = 12


class _Killed(Exception):
  """Stands for a kill between two checkpoints."""


def _config(folder):
  """Groups of one, on one device: seven prompts can be cut over no four."""
  return dataclasses.replace(
    config_file.load("tiny_addition"),
    runs=str(folder),
    steps=STEPS,
    prompts_per_step=7,
    group_size=1,
    method=methods.Ppo(critic_rate=4.0),
    model=experiment.Model(name="tiny", remat="none"),
    checkpoint=experiment.Checkpoint(every=5),
    evaluation=experiment.Evaluation(every=6, examples=4, batch=4),
    logging=experiment.Logging(tensorboard=False),
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return loop.train(_config(tmp_path_factory.mktemp("whole")))


def _restored(folder):
  template = setup.build(_config(folder.parent)).init_state()
  with checkpoint.Checkpointer(folder / "checkpoints", keep=2) as saver:
    saved, _, number = saver.restore(template)
  assert number == STEPS
  return jax.device_get(saved)


def _rows(path):
  timed = ("time/", "memory/", "tokens_per_second", "seconds")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if not k.startswith(timed)} for row in rows
  ]


def test_killed_and_resumed_it_ends_with_the_same_bits(
  trained, tmp_path, monkeypatch
):
  """Contract 6: the critic, its optimizer and its metrics are saved too."""
  config = _config(tmp_path)
  write = metrics.MetricsWriter.write

  def killed(self, number, values):
    write(self, number, values)
    if number == 8:
      raise _Killed

  with monkeypatch.context() as patch:
    patch.setattr(metrics.MetricsWriter, "write", killed)
    with pytest.raises(_Killed):
      loop.train(config)
  folder = loop.train(config, resume=True)
  one, other = _restored(trained), _restored(folder)
  chex.assert_trees_all_equal(one, other)
  assert np.abs(one.head_params["weight"]).max() > 0.01
  assert jax.tree.leaves(one.head_opt_state)
  for name in (metrics.METRICS, metrics.EVALUATIONS):
    assert _rows(trained / name) == _rows(folder / name)
  weights = "export/model.safetensors"
  assert (trained / weights).read_bytes() == (folder / weights).read_bytes()


def test_the_metrics_of_the_critic_are_there(trained):
  rows = metrics.read(trained / metrics.METRICS)
  for row in rows:
    assert row["grad_norm"] > 0
    for name in (
      "value_loss value_clip_fraction explained_variance value_mean"
      " return_mean head_grad_norm policy_loss"
    ).split():
      assert np.isfinite(row[name])
  assert rows[0]["value_mean"] == 0.0  # a new critic knows nothing
  assert rows[-1]["value_mean"] > 0.1  # it has seen digits rewarded


def test_export_evaluation_and_sampling_know_no_critic(trained):
  export = str(trained / "export")
  texts = inference.sample(
    export,
    ["1 + 1 ="],
    sampling=experiment.Sampling(greedy=True),
    max_new_tokens=4,
    samples=1,
    seed=0,
    chat=False,
  )
  assert len(texts) == 1
  config = _config(trained.parent)
  found = inference.evaluate(config, checkpoint=str(trained)).metrics
  last = metrics.read(trained / metrics.EVALUATIONS)[-1]
  assert found["reward"] == last["reward"]
