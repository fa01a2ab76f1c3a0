"""Multi-token prediction: what the module says, and who feels its gradient."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import cache, families, mtp
from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import score

V, S, T, G = 32, 4, 5, 4
LLAMA = dataclasses.replace(
  families.TINY, vocab_size=V, width=16, heads=2, head_dim=8, mlp_width=16
)
GEMMA = dataclasses.replace(
  LLAMA,
  family="gemma3",
  window=3,
  layer_windows=(True, False),
  rope_theta_local=100.0,
  final_softcap=5.0,
)
TEMPERATURE = 0.7


@functools.cache
def _model(config=LLAMA):
  """Model, its parameters and those of a module that has an opinion."""
  model = families.build(config)
  params = model.init(jax.random.key(0))
  head = mtp.MtpModule().init(jax.random.key(5), model)
  return model, params | {"embed": params["embed"] * 20}, head


@functools.cache
def _rollout():
  """Prompts of two lengths, the last of a single token."""
  rollout = rollouts.make_rollout(
    groups=3, group_size=G, length=T, prompt_length=S, vocab_size=V
  )
  alone = jnp.arange(3 * G) >= 2 * G
  only = jnp.arange(S)[None] == S - 1
  mask = jnp.where(alone[:, None], only, rollout.prompt_mask)
  return rollout.replace(prompt_mask=mask)


def _score(share=1.0, config=LLAMA):
  return score.make_score(
    _model(config)[0],
    temperature=TEMPERATURE,
    needs=frozenset({"mtp_logprobs"}),
    head=mtp.MtpModule(trunk_gradient=share),
  )


@functools.cache
def _scored():
  return jax.jit(_score())


@functools.partial(jax.jit, static_argnames="config")
def _by_hand(tokens, config=LLAMA):
  """[L] of one sequence without padding; the first two are predicted by none.

  The definition: trunk state at t - 2 beside the token at t - 1, one block
  over all such places, whole logits.
  """
  model, params, head = _model(config)
  head = head["mtp"]
  rows = cache.Causal(jnp.ones((1, len(tokens)), bool))
  hidden, _ = model.apply(params, tokens[None], rows.positions(), rows)
  eps, scale = config.norm_eps, params["embed"].shape[1] ** 0.5
  scale = scale if config.family == "gemma3" else 1.0
  norm = lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps)  # noqa: E731
  both = [norm(hidden[:, :-1]), norm(scale * params["embed"][tokens[None, 1:]])]
  x = jnp.concatenate(both, axis=2) @ head["project"]
  rows = cache.Causal(jnp.ones((1, len(tokens) - 1), bool))
  x = model.apply_block(head["block"], x, rows.positions(), rows)
  logits = norm(x)[0] @ params["embed"].T
  if config.final_softcap:
    logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
  logprobs = jax.nn.log_softmax(logits / TEMPERATURE)
  found = logprobs[jnp.arange(len(tokens) - 2), tokens[2:]]
  return jnp.pad(found, (2, 0))


class PredictionTest(chex.TestCase):
  @parameterized.parameters(LLAMA, GEMMA)
  def test_it_is_the_definition_on_rows_without_padding(self, config):
    rollout, (_, params, head) = _rollout(), _model(config)
    found = jax.jit(_score(config=config))(
      params, rollout, None, head
    ).mtp_logprobs
    for row in (0, 5, 9):
      on, prompt = (
        np.asarray(m[row]) for m in (rollout.mask, rollout.prompt_mask)
      )
      tokens = np.concatenate(
        [rollout.prompts[row][prompt], rollout.completions[row][on]]
      )
      wanted = np.zeros(T)
      wanted[: on.sum()] = _by_hand(jnp.asarray(tokens), config)[prompt.sum() :]
      np.testing.assert_allclose(found[row], wanted, atol=2e-5)

  def test_only_after_one_token_nothing_is_predicted(self):
    rollout = _rollout()
    seen = np.asarray(mtp.predicted(rollout))
    wanted = np.asarray(rollout.mask).copy()
    wanted[2 * G :, 0] = False
    np.testing.assert_array_equal(seen, wanted)
    _, params, head = _model()
    found = _scored()(params, rollout, None, head).mtp_logprobs
    np.testing.assert_array_equal(np.asarray(found) != 0, wanted)

  def test_a_completion_of_one_token_is_predicted_from_its_prompt(self):
    rollout, (_, params, head) = _rollout(), _model()
    short = rollout.replace(
      completions=rollout.completions[:, :1], mask=rollout.mask[:, :1]
    )
    fn = _scored()
    np.testing.assert_allclose(
      fn(params, short, None, head).mtp_logprobs,
      fn(params, rollout, None, head).mtp_logprobs[:, :1],
      atol=1e-5,
    )

  def test_the_policy_alone_is_scored_as_without_a_module(self):
    _, params, head = _model()
    plain = score.make_score(_model()[0], temperature=TEMPERATURE)
    expected = plain(params, _rollout())
    chex.assert_trees_all_equal(_score()(params, _rollout()), expected)
    found = _scored()(params, _rollout(), None, head)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)

  def test_padding_is_never_read(self):
    rollout, (_, params, head) = _rollout(), _model()
    dirty = rollout.replace(
      completions=jnp.where(rollout.mask, rollout.completions, 10**6),
      prompts=jnp.where(rollout.prompt_mask, rollout.prompts, -7),
    )
    fn = _scored()
    chex.assert_trees_all_equal(
      fn(params, dirty, None, head), fn(params, rollout, None, head)
    )


def _probe(share, rollout, config=LLAMA):
  """Gradients of a sum in which every token counts differently."""

  def value(params, head):
    found = _score(share, config)(params, rollout, None, head).mtp_logprobs
    weights = jnp.sin(1.0 + jnp.arange(found.size)).reshape(found.shape)
    return (weights * found).sum(), found

  _, params, head = _model(config)
  return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(params, head)


class GradientTest(chex.TestCase):
  def test_the_policy_feels_its_share_and_the_module_all(self):
    (whole, own), values = _probe(1.0, _rollout())
    for leaf in jax.tree.leaves(own):
      self.assertGreater(float(jnp.abs(leaf).max()), 1e-3)
    for share, given in ((0.0, 0.0), ("share", 0.5)):
      extras = _rollout().extras | {"share": jnp.float32(given)}
      (policy, module), same = _probe(share, _rollout().replace(extras=extras))
      chex.assert_trees_all_equal(same, values)
      wanted = jax.tree.map(lambda x, given=given: given * x, whole)
      chex.assert_trees_all_close(policy, wanted, atol=1e-5)
      chex.assert_trees_all_close(module, own, atol=1e-5)

  def test_prompts_packed_once_per_group_change_nothing(self):
    packed = _probe(1.0, _rollout())
    alone = _probe(1.0, _rollout().replace(group_size=1))
    chex.assert_trees_all_close(packed, alone, atol=1e-4)

  @parameterized.parameters((LLAMA, False), (GEMMA, True))
  def test_sequence_packing_changes_nothing(self, config, holes):
    rollout = rollouts.make_ragged_rollout(shape=(4, 4, 7, 9), holes=holes)
    packed = packing.Packer(pieces=1)(rollout)[0]
    expected = _probe(1.0, rollout, config)
    found = _probe(1.0, packed, config)
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    self.assertGreater(optax.tree.norm(expected[0]), 0.1)

  @parameterized.parameters(False, True)
  def test_on_a_mesh_it_is_what_it_is_on_one_device(self, packed):
    rollout = rollouts.make_ragged_rollout(shape=(4, 4, 7, 9))
    if packed:
      rollout = packing.Packer(pieces=1, shares=2)(rollout)[0]
    model, params, head = _model()
    mesh = meshes.make_mesh(
      4, data=1, fsdp=2, tensor=2, devices=jax.devices()[:4]
    )
    both = params | head
    places = sharding.parameter_shardings(model.config, both, mesh)
    cut = places["mtp"]["block"]["attention"]["q"]
    self.assertEqual(
      cut, places["layers"]["attention"]["q"].update(spec=cut.spec)
    )
    self.assertEqual(tuple(cut.spec), ("fsdp", "tensor"))
    self.assertEqual(tuple(places["mtp"]["project"].spec), ("fsdp", None))
    laid = jax.device_put(both, places)
    head_there = {"mtp": laid.pop("mtp")}
    fn = jax.jit(meshes.traced_for(mesh, _score()))
    found = fn(laid, meshes.place_rows(rollout, mesh), None, head_there)
    np.testing.assert_allclose(
      found.mtp_logprobs,
      _scored()(params, rollout.replace(packing=None), None, head).mtp_logprobs,
      atol=1e-4,
    )


class ModuleTest(chex.TestCase):
  def test_a_share_that_a_rollout_does_not_name_is_0(self):
    module = mtp.MtpModule(trunk_gradient="share")
    self.assertEqual(module.share(_rollout()), 0.0)
    self.assertEqual(mtp.MtpModule(trunk_gradient=0.5).share(_rollout()), 0.5)

  @parameterized.parameters(
    ({"trunk_gradient": -0.1}, "trunk_gradient must be in"),
    ({"trunk_gradient": float("nan")}, "trunk_gradient must be in"),
    ({"rate": 0.0}, "mtp_rate must be positive"),
  )
  def test_numbers_that_cannot_be_are_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      mtp.MtpModule(**knobs)
