"""What every method must satisfy inside the real train step.

The policy is a table of logits by position: its log-probs, entropies and hidden
states are real, its forward costs nothing. A new method is tested by its row.
"""

import dataclasses
import functools
import types as types_of

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import method_contract_test
import numpy as np
import optax

from jaxrl_llm import methods, types
from jaxrl_llm.models import mtp
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import heads, state, step

B, G, T, V = 4, 4, 6, 16


def _is_tried(name, config):
  """Every row with its defaults, and every variant that remembers something."""
  state = config.build().transform.init()
  return name in methods.BY_GRADIENT or bool(jax.tree.leaves(state))


VARIANTS = {
  name: config
  for name, config in method_contract_test.VARIANTS.items()
  if _is_tried(name, config)
}
each_variant = parameterized.named_parameters((name, name) for name in VARIANTS)


def _params():
  return {"table": 0.3 * jax.random.normal(jax.random.key(1), (T, V))}


def _score(params, rollout, reference=None):
  logits = jax.nn.log_softmax(params["table"])
  chosen = jnp.where(rollout.mask, rollout.completions, 0)
  logprobs = logits[jnp.arange(T)[None, :], chosen]
  entropy = -(jnp.exp(logits) * logits).sum(axis=1)
  seen = rollout.prompt_mask.at[:, 0].set(False)
  return types.Scores(
    prompt_logprobs=jnp.where(seen, logits[0, rollout.prompts], 0.0),
    logprobs=jnp.where(rollout.mask, logprobs, 0.0),
    entropy=jnp.where(rollout.mask, entropy[None, :], 0.0),
    hidden=jnp.broadcast_to(params["table"], (*rollout.mask.shape, V)),
    token_hidden=_states(params, rollout.completions, rollout.mask),
    prompt_hidden=_states(params, rollout.prompts, rollout.prompt_mask),
    layer_jsd=jnp.where(rollout.mask, jax.nn.sigmoid(logits[None, :, 0]), 0.0),
    attention_jsd=jnp.where(
      rollout.mask, jax.nn.sigmoid(logits[None, :, 1]), 0.0
    ),
    vocab_size=V,
    **_compared(logits, reference, rollout.mask),
  )


def _compared(logits, reference, mask):
  if reference is None:
    return {}
  p, gap = jnp.exp(logits), logits - jax.nn.log_softmax(reference["table"])
  found = {
    "reference_kl": (p * gap).sum(axis=1),
    "collision": (p * p).sum(axis=1),
  }
  return {name: jnp.where(mask, x[None, :], 0.0) for name, x in found.items()}


def _states(params, tokens, mask):
  """Of each token, 0 on padding; it depends on those before it, too."""
  known = jnp.where(mask, tokens, 0)
  states = jnp.where(mask[..., None], params["table"].T[known], 0.0)
  return jnp.where(mask[..., None], jnp.cumsum(states, axis=1), 0.0)


def _scorer(method):
  """Only what the step computes for the needs."""
  names = set(rollouts.ARRAYS) - method.needs - {"logprobs"}

  def score(params, rollout, reference=None, head_params=None):
    scores = _score(params, rollout, reference)
    bare = scores.replace(**dict.fromkeys(names))
    if head_params is None:
      return bare
    if "values" in method.needs:
      return bare.replace(values=method.head.apply(head_params, scores.hidden))
    # A module that predicts ahead: another table on top of the policy's.
    shared = mtp.scaled_gradient(params["table"], method.head.share(rollout))
    ahead = _score({"table": shared + head_params["table"]}, rollout).logprobs
    ahead = jnp.where(mtp.predicted(rollout), ahead, 0.0)
    return bare.replace(mtp_logprobs=ahead)

  return score


def _head(method):
  if "mtp_logprobs" in method.needs:
    return heads.AuxiliaryHead(
      lambda: {"table": 0.1 * _params()["table"][:, ::-1]}, optax.sgd(0.1)
    )
  config = types_of.SimpleNamespace(width=V)
  model = types_of.SimpleNamespace(config=config)
  return heads.of_method(method, model, lambda rate: optax.sgd(0.1))


def _rollout(method):
  """Sampled by a policy a little away, one row of it stale if rows can be."""
  rollout = rollouts.make_rollout(
    groups=B, group_size=G, length=T, vocab_size=V
  )
  now = _score(_params(), rollout).logprobs
  gap = 0.2 * jnp.sin(jnp.arange(now.size)).reshape(now.shape)
  old = jnp.where(rollout.mask, now + gap, 0.0)
  parts = jnp.stack([rollout.rewards, jnp.full(B * G, jnp.nan)], axis=1)
  extras = {
    "behaviour_logprobs": old,
    "reward_components": parts,
    "reward_weights": jnp.ones_like(parts),
  }
  if "stale" in method.plan.extras:
    extras["stale"] = (jnp.arange(B * G) == 3).astype(jnp.float32)
  rollout = rollout.replace(old_logprobs=old, ref_logprobs=None, extras=extras)
  return rollouts.with_extras(rollout, method.plan.extras)


class Run:
  """A method's compiled step, and how often it was traced."""

  def __init__(self, method, **knobs):
    self.traces = 0
    head, optimizer = _head(method), optax.sgd(0.5)
    train_step = step.make_train_step(
      _scorer(method), method, optimizer, head=head, **knobs
    )

    def counted(*args):
      self.traces += 1
      return train_step(*args)

    self.start = state.init_state(_params(), method, optimizer, head=head)
    self.plain = train_step
    self.step = jax.jit(
      counted, compiler_options={"xla_backend_optimization_level": 0}
    )
    # Not the policy's own parameters: a KL has something to say.
    self.reference = jax.tree.map(lambda x: 0.9 * x, _params())

  def __call__(self, rollout):
    return self.step(self.start, rollout, self.reference)


@functools.cache
def _method(name):
  return VARIANTS[name].build()


@functools.cache
def _run(name):
  """The sampler's log-probs count, so the ratio is not 1."""
  return Run(_method(name), old_logprobs="sampler")


class StepContractTest(chex.TestCase):
  @each_variant
  def test_micro_batches_agree(self, name):
    method = _method(name)
    rollout = _rollout(method)
    whole = _run(name)(rollout)
    change = jax.tree.map(jnp.subtract, whole[0].params, _params())
    self.assertGreater(float(optax.tree.norm(change)), 1e-4)
    # Two rows a piece: every group is cut. 2 pieces, which cut none, are tried
    # with the objective of each method and with the step of some.
    cut = Run(method, old_logprobs="sampler", micro_batches=8)
    chex.assert_trees_all_close(cut(rollout), whole, rtol=1e-5, atol=1e-6)

  @each_variant
  def test_jit_changes_nothing(self, name):
    run, rollout = _run(name), _rollout(_method(name))
    with jax.disable_jit():
      plain = run.plain(run.start, rollout, run.reference)
    chex.assert_trees_all_close(run(rollout), plain, rtol=1e-5, atol=1e-6)

  @each_variant
  def test_the_second_step_compiles_nothing(self, name):
    rollout = _rollout(_method(name))
    run = Run(_method(name), mini_batches=2, epochs=2)
    now, first = run(rollout)
    for _ in range(2):
      now, metrics = run.step(now, rollout, run.reference)
    self.assertEqual(run.traces, 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(now, run.start)
    chex.assert_trees_all_equal_shapes_and_dtypes(metrics, first)
    chex.assert_tree_all_finite((now.params, now.head_params, metrics))
    self.assertEqual(int(now.step), 3)

  @each_variant
  def test_padding_is_never_read(self, name):
    run, clean = _run(name), _rollout(_method(name))
    on, seen = clean.mask, clean.prompt_mask
    spoilt = jnp.where(on, clean.old_logprobs, jnp.inf)
    dirty = clean.replace(
      old_logprobs=spoilt,
      completions=jnp.where(on, clean.completions, 10**6),
      prompts=jnp.where(seen, clean.prompts, -7),
      extras=clean.extras | {"behaviour_logprobs": spoilt},
    )
    chex.assert_trees_all_equal(run(clean), run(dirty))

  @each_variant
  def test_batches_without_a_signal_keep_everything_finite(self, name):
    run, rollout = _run(name), _rollout(_method(name))
    rows = np.arange(B * G)
    for odd in (
      _with_rewards(rollout, np.ones(B * G)),
      _with_rewards(rollout, np.zeros(B * G)),
      _with_rewards(rollout, np.full(B * G, -3.3)),
      _with_rewards(rollout, np.where(rows < G, rollout.rewards, 0.9)),
      rollout.replace(mask=rollout.mask & (rows % 3 > 0)[:, None]),
      rollout.replace(mask=jnp.zeros_like(rollout.mask)),
      rollout.replace(weights=np.float32(rows > G)),
      rollout.replace(weights=np.zeros(B * G, np.float32)),
    ):
      new, metrics = run(odd)
      chex.assert_tree_all_finite((new.params, new.head_params, metrics))
    chex.assert_trees_all_equal(new.params, run.start.params)
    self.assertEqual(run.traces, 1)


def _with_rewards(rollout, rewards):
  """Components and a greedy completion say the same."""
  rewards = np.float32(rewards)  # without a weak type: no second trace
  parts = rollout.extras["reward_components"].at[:, 0].set(rewards)
  extras = rollout.extras | {"reward_components": parts}
  if "greedy_rewards" in extras:
    extras["greedy_rewards"] = rewards
  return rollout.replace(rewards=rewards, extras=extras)


class ContractOfTheStepFailsTest(chex.TestCase):
  """Broken methods are caught."""

  def _broken(self, **change):
    return dataclasses.replace(_method("dr_grpo"), **change)

  def test_a_mean_over_the_piece_does_not_add_up(self):
    def objective(scores, rollout, advantages, weights):
      loss = -(advantages * scores.logprobs).sum() / rollout.mask.sum()
      return loss, {"loss": loss, "token_weight": weights.sum()}

    method = self._broken(objective=objective)
    whole, cut = (
      Run(method, micro_batches=pieces)(_rollout(method)) for pieces in (1, 8)
    )
    gap = jax.tree.map(jnp.subtract, whole[0].params, cut[0].params)
    self.assertGreater(float(optax.tree.norm(gap)), 1e-3)

  def test_a_state_that_changes_its_type_is_traced_again(self):
    transform = types.RolloutTransform(
      init=lambda: 0,
      update=lambda rollout, count: (rollout, jnp.float32(count) + 1.0),
    )
    method = self._broken(transform=transform)
    run, rollout = Run(method), _rollout(method)
    now, _ = run(rollout)
    run.step(now, rollout, run.reference)
    self.assertEqual(run.traces, 2)
    self.assertTrue(np.isfinite(now.method_state))
