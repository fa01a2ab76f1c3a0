"""Divergences of an inner layer, scored: values, gradients, packing, meshes."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import score_test

from jaxrl_llm import methods, types
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import attention_maps, cache, families
from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import score, state, step

B, G, S, T, V = 4, 4, 4, 5, 32
CONFIG = dataclasses.replace(
  score_test.SMALL, depth=3, tied=False, vocab_size=V, final_softcap=8.0
)
NAMES = ("layer_jsd", "attention_jsd")


@functools.cache
def _params():
  params = families.build(CONFIG).init(jax.random.key(0))
  return jax.tree.map(lambda x: 3.0 * x, params)  # layers that differ


@functools.cache
def _rollout():
  return rollouts.make_rollout(
    groups=B, group_size=G, length=T, prompt_length=S, vocab_size=V
  )


def _scorer(layer=1, flow=False, remat="none", names=NAMES):
  return score.make_score(
    families.build(CONFIG, remat=remat),
    temperature=0.7,
    needs=frozenset({*names, types.InnerLayer(layer, flow)}),
  )


def _probe(rollout, mesh=None, **knobs):
  """The divergences, and a gradient in which every token counts otherwise."""
  fn = _scorer(**knobs)

  def total(params):
    scores = fn(params, rollout)
    tilt = jnp.sin(1.0 + jnp.arange(B * G * T)).reshape(B * G, T)
    found = [getattr(scores, name) for name in NAMES]
    return (tilt * sum(found)).sum(), (scores.logprobs, *found)

  run = jax.jit(meshes.traced_for(mesh, jax.grad(total, has_aux=True)))
  params = _params()
  if mesh is not None:
    places = sharding.parameter_shardings(CONFIG, params, mesh)
    params = jax.device_put(params, places)
    rollout = meshes.place_rows(rollout, mesh)
  return jax.device_get(run(params))


@functools.cache
def _plain():
  return _probe(_rollout())


def _whole(layer):
  """Whole rows, whole logits, whole maps, in the paper's own terms."""
  model, rollout, params = families.build(CONFIG), _rollout(), _params()
  tokens = jnp.concatenate([rollout.prompts, rollout.completions], axis=1)
  mask = jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
  rows = cache.Causal(mask)
  args = params, tokens, rows.positions(), rows
  last, (inner, *before) = model.tapped(*args, after=(layer, layer - 1, 2))

  def jsd(p, q):
    m = 0.5 * (p + q)
    safe = lambda x: jnp.where(x > 0, x, 1.0)  # noqa: E731
    return 0.5 * sum(
      (x * jnp.log(safe(x) / safe(m))).sum(axis=-1) for x in (p, q)
    )

  def predictions(hidden):
    z = jnp.dot(hidden, params["head"].T, precision="highest")
    return jax.nn.softmax(8.0 * jnp.tanh(z / 8.0) / 0.7)

  def attention(stream, block):
    asked = model.asked(params, stream, rows.positions(), block=block)
    places = jnp.arange(S + T)
    seen = attention_maps.allowed_keys(mask.astype(jnp.int32), places, None)
    maps = attention_maps.attention_weights(
      asked.q, asked.k, seen, scale=asked.scale
    )
    return maps.mean(axis=1)

  thinks = jsd(predictions(model.normed(params, inner)), predictions(last))
  blocks = attention(before[0], layer - 1), attention(before[1], 2)
  return [
    jnp.where(rollout.mask, x[:, S - 1 : -1], 0.0)
    for x in (thinks, jsd(*blocks))
  ]


class InnerLayerTest(chex.TestCase):
  @parameterized.parameters(1, 2)
  def test_divergences_are_those_of_whole_logits_and_maps(self, layer):
    scores = jax.jit(_scorer(layer))(_params(), _rollout())
    bare = jax.jit(score.make_score(families.build(CONFIG), temperature=0.7))
    np.testing.assert_allclose(
      scores.logprobs, bare(_params(), _rollout()).logprobs, atol=1e-6
    )
    for name, expected in zip(
      NAMES, jax.jit(_whole, static_argnums=0)(layer), strict=True
    ):
      found = np.asarray(getattr(scores, name))
      np.testing.assert_allclose(found, expected, atol=2e-5)
      self.assertGreater(found.max(), 0.01)
      self.assertLessEqual(found.max(), np.log(2) + 1e-6)

  def test_the_gradient_stays_below_the_layer(self):
    grads, _ = _probe(_rollout(), layer=2)
    size = lambda tree: max(  # noqa: E731
      float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)
    )
    self.assertEqual(size(grads["head"]), 0.0)
    self.assertEqual(size(grads["final_norm"]), 0.0)
    of = lambda i: jax.tree.map(lambda g: g[i], grads["layers"])  # noqa: E731
    self.assertEqual(size(of(2)), 0.0)
    self.assertGreater(size(of(1)), 1e-4)
    self.assertGreater(size(of(0)), 1e-4)
    self.assertGreater(size(grads["embed"]), 1e-4)
    flowing, found = _probe(_rollout(), layer=2, flow=True)
    self.assertGreater(size(flowing["head"]), 1e-4)
    self.assertGreater(size(flowing["final_norm"]), 1e-4)
    chex.assert_trees_all_close(flowing["layers"], grads["layers"], atol=1e-5)

  def test_the_last_layer_is_no_way_from_itself(self):
    grads, found = _probe(_rollout(), layer=3)
    for divergence in found[1:]:
      np.testing.assert_array_equal(divergence, 0.0)
    chex.assert_trees_all_equal(grads, jax.tree.map(np.zeros_like, grads))

  def test_only_what_is_asked_for_is_returned(self):
    shapes = jax.eval_shape(_scorer(names=NAMES[:1]), _params(), _rollout())
    self.assertIsNone(shapes.attention_jsd)
    self.assertEqual(shapes.layer_jsd.shape, (B * G, T))

  def test_a_layer_that_is_not_there_is_refused_when_building(self):
    with self.assertRaisesRegex(ValueError, "layer must be from 1 to 3, .* 4"):
      _scorer(layer=4)

  @parameterized.parameters("dots", "full")
  def test_what_is_recomputed_changes_nothing(self, remat):
    chex.assert_trees_all_close(
      _probe(_rollout(), remat=remat), _plain(), atol=2e-5
    )

  @parameterized.parameters(False, True)
  def test_packed_and_on_a_mesh_they_are_the_same(self, packed):
    rollout = jax.device_get(_rollout())
    alone = packing.Packer(shares=2)(rollout)[0] if packed else rollout
    mesh = meshes.make_mesh(
      B, data=1, fsdp=2, tensor=2, devices=jax.devices()[:4]
    )
    on_mesh = _probe(alone, mesh)
    chex.assert_trees_all_close(on_mesh, _plain(), atol=5e-5)
    if packed:
      chex.assert_trees_all_close(_probe(alone), _plain(), atol=5e-5)

  def test_neither_logits_nor_maps_of_all_tokens_exist(self):
    """Contract 7: 8192 tokens, V = 32768."""
    vocab, groups, length = 32768, 128, 16
    config = dataclasses.replace(score_test.SMALL, vocab_size=vocab)
    model, method = families.build(config), methods.Oisd().build()
    chain = optax.sgd(0.1)
    train_step = step.make_train_step(
      score.make_score(model, needs=method.needs), method, chain
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    start = jax.eval_shape(
      lambda params: state.init_state(params, method, chain), params
    )
    rollout = jax.eval_shape(
      lambda: rollouts.make_rollout(groups=groups, group_size=4, length=length)
    )
    traced = jax.jit(train_step).trace(start, rollout, params)
    biggest = max(score_test._sizes(traced.jaxpr.jaxpr))
    tokens = groups * 4 * length
    self.assertLessEqual(biggest, tokens * vocab // 8)
    self.assertGreater(biggest, 2**22)  # the walk reached the tiles
