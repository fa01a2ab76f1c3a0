"""Packed = unpacked: scores, gradients and whole updates, however it is cut."""

import dataclasses
import functools
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.distributed import costs, sharding
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.models import api, attention, families
from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import heads, score, state, step

B, G, S, T, V = 4, 4, 7, 9, 32
_LLAMA = dataclasses.replace(
  families.TINY, vocab_size=V, width=16, heads=4, head_dim=8, mlp_width=16
)
_GEMMA = dataclasses.replace(
  _LLAMA,
  activation="gelu_tanh",
  attention_softcap=20.0,
  final_softcap=10.0,
  window=4,
  layer_windows=(True, False),
)
CONFIGS = {
  "llama": _LLAMA,
  "qwen3": dataclasses.replace(
    _LLAMA,
    family="qwen3",
    qk_norm=True,
    rope_scaling=api.RopeScaling(kind="yarn", factor=4.0, original_positions=8),
  ),
  "gemma2": dataclasses.replace(_GEMMA, family="gemma2"),
  "gemma3": dataclasses.replace(
    _GEMMA, family="gemma3", qk_norm=True, rope_theta_local=100.0
  ),
}
NEEDS = frozenset({"entropy", "hidden"})


def _ragged(seed=0, **knobs):
  return rollouts.make_ragged_rollout(seed, shape=(B, G, S, T), **knobs)


def _packed(rollout, **knobs):
  return packing.Packer(**knobs)(rollout)[0]


@functools.cache
def _params(name="llama"):
  params = families.build(CONFIGS[name]).init(jax.random.key(0))
  return params | {"embed": params["embed"] * 20}  # logits that differ


def _score(name):
  return score.make_score(
    families.build(CONFIGS[name]), temperature=0.7, needs=NEEDS
  )


@functools.cache
def _probe(name):
  """Jitted: gradient of a scalar in which each token counts differently."""
  fn = _score(name)

  def probe(params, rollout):
    scores = _kept(fn(params, rollout), rollout)
    weights = jnp.sin(1.0 + jnp.arange(rollout.mask.size))
    weights = weights.reshape(rollout.mask.shape)
    value = weights * scores.logprobs + weights**2 * scores.entropy
    value = value + scores.hidden.sum(axis=2)
    return value.sum() / value.size, scores

  return jax.jit(jax.grad(probe, has_aux=True))


def _kept(scores, rollout):
  """Hidden states of padding may be anything."""
  hidden = jnp.where(rollout.mask[..., None], scores.hidden, 0.0)
  return scores.replace(hidden=hidden)


def _close(got, expected):
  chex.assert_trees_all_close(got, expected, atol=1e-5, rtol=1e-5)


class ScoreTest(chex.TestCase):
  @parameterized.parameters(("llama", False), ("gemma3", True))
  def test_scores_and_gradients_are_those_of_padded_rows(self, name, holes):
    rollout = _ragged(holes=holes)
    expected = _probe(name)(_params(name), rollout)
    _close(_probe(name)(_params(name), _packed(rollout)), expected)
    self.assertGreater(optax.tree.norm(expected[0]), 0.1)

  @parameterized.parameters("qwen3", "gemma2")
  def test_families_score_as_with_padded_rows(self, name):
    fn = jax.jit(
      lambda params, rollout: _kept(_score(name)(params, rollout), rollout)
    )
    rollout = _ragged(1)
    expected = fn(_params(name), rollout)
    _close(fn(_params(name), _packed(rollout)), expected)

  def test_long_rows_attend_by_segments(self):
    rollout = _ragged(holes=True)
    _, expected = _probe("gemma3")(_params("gemma3"), rollout)
    fn = jax.jit(_score("gemma3"))
    with mock.patch.object(attention, "LONG", 1):
      got = fn(_params("gemma3"), _packed(rollout))
    _close(_kept(got, rollout), expected)


class ReferenceKlTest(chex.TestCase):
  """Scores.reference_kl of a real model: padded, packed and on a mesh."""

  NEEDS = frozenset({"reference_kl", "collision"})

  def _score(self, rollout, mesh=None):
    fn = score.make_score(
      families.build(_GEMMA), temperature=0.7, needs=self.NEEDS
    )
    params = families.build(_GEMMA).init(jax.random.key(0))
    reference = families.build(_GEMMA).init(jax.random.key(1))

    def total(params, rollout):
      scores = fn(params, rollout, reference)
      weights = jnp.sin(jnp.arange(rollout.mask.size)).reshape(B * G, T)
      value = (weights * (scores.reference_kl + scores.collision)).sum()
      return value, scores.replace(hidden=None)

    probe = jax.jit(meshes.traced_for(mesh, jax.grad(total, has_aux=True)))
    return probe(params, meshes.place_rows(rollout, mesh))

  def test_packed_and_on_a_mesh_it_is_that_of_padded_rows(self):
    rollout = _ragged(1)
    expected = jax.device_get(self._score(rollout))
    kl = expected[1].reference_kl
    self.assertGreater(kl[rollout.mask].mean(), 1e-3)
    np.testing.assert_array_equal(kl[~rollout.mask], 0.0)
    _close(self._score(_packed(rollout)), expected)
    mesh = meshes.make_mesh(
      B, data=2, fsdp=1, tensor=2, devices=jax.devices()[:4]
    )
    _close(jax.device_get(self._score(rollout, mesh)), expected)

  def test_without_a_reference_it_is_refused(self):
    fn = score.make_score(families.build(_LLAMA), needs=self.NEEDS)
    with self.assertRaisesRegex(ValueError, "needs the reference .*got None"):
      fn(_params(), _ragged())


def _update(rollout, method=None, mesh=None, packed=False, **knobs):
  """Change of the parameters and metrics of a step of plain descent."""
  method = (method or methods.Grpo(beta=0.1)).build()
  model = families.build(_LLAMA)
  head = heads.of_method(method, model, lambda rate: optax.sgd(0.1))
  needs = method.needs | NEEDS
  scorer = score.make_score(model, needs=needs, head=method.head)
  pieces = knobs.get("mini_batches", 1) * knobs.get("micro_batches", 1)
  if packed:
    shares = meshes.row_shares(mesh)
    rollout = _packed(rollout, pieces=pieces, shares=shares)
  train_step = step.make_train_step(
    scorer, method, optax.sgd(1.0), head=head, **knobs
  )
  start = state.init_state(_params(), method, optax.sgd(1.0), head=head)
  reference = jax.tree.map(lambda x: 0.9 * x, _params())
  if "ref_logprobs" not in method.needs:
    reference = None
  if mesh is not None:
    places = sharding.parameter_shardings(_LLAMA, _params(), mesh)
    start, reference = (
      jax.device_put(tree, sharding.like_parameters(tree, places, mesh))
      for tree in (start, reference)
    )
  run = jax.jit(meshes.traced_for(mesh, train_step))
  new, metrics = run(start, meshes.place_rows(rollout, mesh), reference)
  before = start.params, start.head_params
  after = new.params, new.head_params
  return jax.device_get((jax.tree.map(jnp.subtract, after, before), metrics))


@functools.cache
def _expected():
  return _update(_ragged(1))


class UpdateTest(chex.TestCase):
  def test_micro_batches_add_up_to_the_padded_update(self):
    _close(_update(_ragged(1), packed=True, micro_batches=8), _expected())
    self.assertGreater(optax.tree.norm(_expected()[0]), 0.1)

  def test_mini_batches_with_a_critic_are_those_of_padded_rows(self):
    knobs = {"mini_batches": 2, "micro_batches": 2}
    knobs["method"] = methods.Ppo(lam=0.95)
    expected = _update(_ragged(2), **knobs)
    _close(_update(_ragged(2), packed=True, **knobs), expected)

  @parameterized.parameters(({"fsdp": 4}, 1), ({"data": 2, "tensor": 2}, 2))
  def test_updates_on_meshes_are_those_of_one_device(self, axes, micro):
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    mesh = meshes.make_mesh(B, **axes, devices=jax.devices()[:4])
    self.assertEqual(mesh.size, 4)
    got = _update(_ragged(1), mesh=mesh, packed=True, micro_batches=micro)
    _close(got, _expected())


class CostTest(chex.TestCase):
  def test_short_completions_cost_few_operations(self):
    rollout = rollouts.make_ragged_rollout(shape=(4, 8, 16, 64), fill=0.25)
    probe = _probe("llama")

    def cost(rollout):
      return costs.flops(probe.trace(_params(), rollout).jaxpr)

    np.testing.assert_array_less(cost(_packed(rollout)), 0.25 * cost(rollout))
