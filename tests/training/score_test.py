"""What the policy says: packed rows, gradients, memory (contract 7)."""

import dataclasses
import functools
import math
import os
import re
from unittest import mock

from absl.testing import parameterized
import chex
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.models import cache, families
from jaxrl_llm.rollout import packing
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import experiment, optimizer, score, state, step

V, S, T, G = 32, 4, 5, 4
SMALL = dataclasses.replace(
  families.TINY, vocab_size=V, width=16, heads=2, head_dim=8, mlp_width=16
)


@functools.cache
def _params():
  params = families.build(SMALL).init(jax.random.key(0))
  return params | {"embed": params["embed"] * 20}  # logits that differ


@functools.cache
def _rollout():
  return rollouts.make_rollout(
    groups=2, group_size=G, length=T, prompt_length=S, vocab_size=V
  )


def _naive(params, rollout, temperature):
  """Whole rows, whole logits: log-probs [N, T] and entropy, 0 off the mask."""
  model = families.build(SMALL)
  tokens = jnp.concatenate([rollout.prompts, rollout.completions], axis=1)
  rows = cache.Causal(
    jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
  )
  hidden, _ = model.apply(params, tokens, rows.positions(), rows)
  logits = hidden[:, S - 1 : -1] @ model.head(params).T / temperature
  logprobs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(logprobs, rollout.completions[..., None], 2)
  entropy = -(jnp.exp(logprobs) * logprobs).sum(axis=-1)
  return (jnp.where(rollout.mask, x, 0.0) for x in (chosen[..., 0], entropy))


def _probe(logprobs, entropy):
  """A scalar in which every token counts differently."""
  weights = jnp.sin(1.0 + jnp.arange(logprobs.size)).reshape(logprobs.shape)
  return (weights * logprobs + 0.3 * weights**2 * entropy).sum()


@functools.cache
def _scored(remat="none", group_size=G):
  """Value and gradient of the probe through score."""
  model = families.build(SMALL, remat=remat)
  fn = score.make_score(model, temperature=0.7, needs=frozenset({"entropy"}))

  def probe(params, rollout):
    scores = fn(params, rollout)
    return _probe(scores.logprobs, scores.entropy), scores

  rollout = _rollout().replace(group_size=group_size)
  probe = jax.jit(jax.grad(probe, has_aux=True))
  return probe(_params(), rollout)


class ScoreTest(chex.TestCase):
  def test_values_and_gradient_are_those_of_whole_logits(self):
    def probe(params, rollout):
      logprobs, entropy = _naive(params, rollout, 0.7)
      return _probe(logprobs, entropy), (logprobs, entropy)

    grads, (logprobs, entropy) = jax.jit(jax.grad(probe, has_aux=True))(
      _params(), _rollout()
    )
    got_grads, scores = _scored()
    np.testing.assert_allclose(scores.logprobs, logprobs, atol=1e-4)
    np.testing.assert_allclose(scores.entropy, entropy, atol=1e-4)
    chex.assert_trees_all_close(got_grads, grads, atol=1e-4)
    self.assertGreater(np.abs(np.asarray(grads["embed"])).max(), 0.1)

  def test_prompts_packed_once_per_group_change_nothing(self):
    (packed_grads, packed), (grads, scores) = _scored(), _scored(group_size=1)
    np.testing.assert_allclose(packed.logprobs, scores.logprobs, atol=1e-5)
    chex.assert_trees_all_close(packed_grads, grads, atol=1e-4)

  @parameterized.parameters("dots", "full")
  def test_what_is_recomputed_does_not_change_the_gradient(self, remat):
    chex.assert_trees_all_close(
      _scored(remat=remat)[0], _scored()[0], atol=1e-5
    )

  def test_only_what_is_needed_is_returned(self):
    bare = score.make_score(families.build(SMALL))
    shapes = jax.eval_shape(bare, _params(), _rollout())
    self.assertIsNone(shapes.entropy)
    self.assertIsNone(shapes.hidden)
    needs = frozenset({"hidden"})
    full = score.make_score(families.build(SMALL), needs=needs)
    shapes = jax.eval_shape(full, _params(), _rollout())
    self.assertEqual(shapes.hidden.shape, (2 * G, T, SMALL.width))

  @parameterized.parameters(T, 1)
  def test_states_at_the_tokens_are_those_of_whole_rows(self, length):
    rollout = _rollout()
    rollout = rollout.replace(
      completions=rollout.completions[:, :length], mask=rollout.mask[:, :length]
    )
    needs = frozenset({"hidden", "token_hidden", "prompt_hidden"})
    fn = jax.jit(score.make_score(families.build(SMALL), needs=needs))
    scores = fn(_params(), rollout)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.mask], axis=1)
    rows = cache.Causal(mask)
    tokens = jnp.concatenate([rollout.prompts, rollout.completions], axis=1)
    model = families.build(SMALL)
    whole, _ = model.apply(_params(), tokens, rows.positions(), rows)
    kept = jnp.where(mask[..., None], whole, 0.0)
    got = jnp.concatenate([scores.prompt_hidden, scores.token_hidden], axis=1)
    np.testing.assert_allclose(got, kept, atol=1e-5)
    before = jnp.where(rollout.mask[..., None], whole[:, S - 1 : -1], 0.0)
    hidden = jnp.where(rollout.mask[..., None], scores.hidden, 0.0)
    np.testing.assert_allclose(hidden, before, atol=1e-5)
    bare = jax.jit(score.make_score(families.build(SMALL)))
    np.testing.assert_allclose(
      scores.logprobs, bare(_params(), rollout).logprobs, atol=1e-6
    )

  def test_packed_rollouts_refuse_states_at_the_tokens(self):
    needs = frozenset({"token_hidden"})
    fn = score.make_score(families.build(SMALL), needs=needs)
    rollout = packing.Packer()(jax.device_get(_rollout()))[0]
    with self.assertRaisesRegex(ValueError, "pack must be False .* 'token_hid"):
      fn(_params(), rollout)
    config = experiment.Experiment(method=methods.VerlRank(), pack=True)
    with self.assertRaisesRegex(ValueError, "pack must be False .* 'token_hid"):
      experiment.validate(config)

  def test_a_completion_of_one_token_is_scored_by_the_prompt_alone(self):
    rollout = _rollout()
    short = rollout.replace(
      completions=rollout.completions[:, :1], mask=rollout.mask[:, :1]
    )
    fn = jax.jit(score.make_score(families.build(SMALL), temperature=0.7))
    logprobs = fn(_params(), short).logprobs
    np.testing.assert_allclose(
      logprobs, _scored()[1].logprobs[:, :1], atol=1e-5
    )


class MemoryTest(chex.TestCase):
  """Contract 7, for N T = 8192 tokens in two mini-batches and V = 32768.

  The bound is an eighth of N T V, which is the largest tile that
  token_logprob takes, 2**25 entries, and a quarter of a mini-batch's logits.
  """

  vocab, groups, length = 32768, 128, 16

  def _lowered(self, packed):
    config = dataclasses.replace(SMALL, vocab_size=self.vocab)
    model = families.build(config)
    method = methods.Grpo(beta=0.04, entropy_coef=0.01).build()
    chain = optimizer.make_optimizer(experiment.Optimizer(), steps=2)
    needs = method.needs | {"entropy"}
    train_step = step.make_train_step(
      score.make_score(model, needs=needs), method, chain, mini_batches=2
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    start = jax.eval_shape(
      lambda params: state.init_state(params, method, chain), params
    )
    rollout = jax.eval_shape(
      lambda: rollouts.make_rollout(
        groups=self.groups, group_size=G, length=self.length
      )
    )
    if packed:
      rollout = packing.Packer(pieces=2).largest(rollout)
    return jax.jit(train_step).trace(start, rollout, params)

  @parameterized.parameters(False, True)
  def test_logits_of_all_tokens_never_exist(self, packed):
    tokens = self.groups * G * self.length
    traced = self._lowered(packed)
    bound = tokens * self.vocab // 8
    biggest = max(_sizes(traced.jaxpr.jaxpr))  # every platform's branch
    self.assertLessEqual(biggest, bound)
    self.assertGreater(biggest, tokens)  # the walk reached the tiles
    text = traced.lower().as_text()  # what this platform compiles
    shapes = re.findall(r"tensor<((?:\d+x)+)\w+>", text)
    sizes = [math.prod(map(int, s.split("x")[:-1])) for s in set(shapes)]
    self.assertLessEqual(max(sizes), bound)

  def test_the_walk_finds_logits_where_they_are(self):
    def naive(hidden, head):
      return jax.lax.scan(
        lambda c, x: (c, jax.nn.log_softmax(x @ head.T).max()), 0, hidden
      )

    shapes = jnp.zeros((2, 8, 4)), jnp.zeros((64, 4))
    jaxpr = jax.make_jaxpr(jax.jit(naive))(*shapes)
    self.assertEqual(max(_sizes(jaxpr.jaxpr)), 8 * 64)


class EntropyTest(chex.TestCase):
  """What nothing needs is not computed, not even to be thrown away."""

  vocab = 37  # no other dimension

  def _text(self, extra, *, whole_step):
    """The program of XLA for plain GRPO, whose needs are empty."""
    config = dataclasses.replace(SMALL, vocab_size=self.vocab)
    model, method = families.build(config), methods.Grpo(beta=0.0).build()
    self.assertEqual(method.needs, frozenset())
    fn = score.make_score(model, needs=method.needs | extra)
    params = jax.eval_shape(model.init, jax.random.key(0))
    chain = optimizer.make_optimizer(experiment.Optimizer(), steps=2)
    start = jax.eval_shape(
      lambda params: state.init_state(params, method, chain), params
    )
    train_step = step.make_train_step(fn, method, chain)
    with mock.patch.dict(os.environ, {"JAXRL_KERNELS": "xla"}):
      if whole_step:
        return jax.jit(train_step).lower(start, _rollout(), None).as_text()
      return jax.jit(fn).lower(params, _rollout()).as_text()

  def _work(self, text):
    """Sums and exponentials of arrays of tokens by vocabulary."""
    tile = rf"tensor<{2 * G * T}x{self.vocab}xf32>"
    sums = rf"stablehlo\.reduce.* applies stablehlo\.add .*: \({tile}"
    exps = rf"stablehlo\.exponential .*: {tile}"
    return tuple(len(re.findall(what, text)) for what in (sums, exps))

  def test_plain_grpo_has_no_entropy_work(self):
    nothing = frozenset()
    forward = self._work(self._text(nothing, whole_step=False))
    self.assertEqual(forward, (1, 1))  # of the logsumexp
    update = self._work(self._text(nothing, whole_step=True))
    self.assertEqual(update, (1, 2))  # and the gradient's softmax

  def test_entropy_is_a_sum_more_in_the_same_pass(self):
    text = self._text(frozenset({"entropy"}), whole_step=False)
    self.assertEqual(self._work(text), (2, 1))


def _sizes(jaxpr):
  """Elements of every array in a jaxpr and the jaxprs inside it."""
  for equation in jaxpr.eqns:
    for var in equation.outvars:
      yield math.prod(getattr(var.aval, "shape", ()))
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=_is_jaxpr
    ):
      if _is_jaxpr(value):
        yield from _sizes(getattr(value, "jaxpr", value))


def _is_jaxpr(value):
  return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
