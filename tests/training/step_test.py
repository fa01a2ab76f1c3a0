"""The train step: contracts 4 and 5, several updates, pi_old, the reference."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import methods
from jaxrl_llm.distributed import mesh as meshes
from jaxrl_llm.methods import base
from jaxrl_llm.models import families
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import score, state, step
from jaxrl_llm.transforms import chain

V, S, T, G, B = 32, 3, 5, 4, 4
SMALL = dataclasses.replace(
  families.TINY, vocab_size=V, width=16, heads=2, head_dim=8, mlp_width=16
)
METHODS = {
  "grpo": methods.Grpo(beta=0.0),
  "dr_grpo": methods.DrGrpo(),
  "dapo": methods.Dapo(),
}


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
  assert len(set(rollout.mask.sum(axis=1).tolist())) > 2
  return rollout.replace(
    weights=rollout.weights.at[5].set(0.0),
    ref_logprobs=None,
    extras={"behaviour_logprobs": rollout.old_logprobs},
  )


def _model_step(method, **knobs):
  model, _ = _model()
  scorer = score.make_score(model, needs=method.needs | {"entropy"})
  # Plain descent at rate 1: the change of the parameters is the gradient.
  return step.make_train_step(scorer, method, optax.sgd(1.0), **knobs)


def _jit(function):
  """Compiles fast rather than well."""
  return jax.jit(
    function, compiler_options={"xla_backend_optimization_level": 0}
  )


def _model_update(name, devices=1, **knobs):
  method = METHODS[name].build()
  _, params = _model()
  mesh = meshes.make_mesh(B, devices=jax.devices()[:devices])
  assert (mesh.size if mesh else 1) == devices
  start = state.init_state(params, method, optax.sgd(1.0))
  new, metrics = _jit(_model_step(method, **knobs))(
    meshes.replicate(start, mesh), meshes.place_rows(_rollout(), mesh), None
  )
  assert len(new.params["embed"].sharding.device_set) == devices
  change = jax.tree.map(jnp.subtract, jax.device_get(new.params), params)
  return change, jax.device_get(metrics)


@functools.cache
def _whole_update(name):
  return _model_update(name)


class SamePiecesTest(chex.TestCase):
  """Contract 5: however the batch is cut, the update is the same."""

  @parameterized.parameters(
    ("grpo", 2, 1),
    ("grpo", 8, 1),
    ("grpo", 1, 2),
    ("grpo", 1, 4),
    ("dr_grpo", 2, 2),
    ("dr_grpo", 8, 4),
    ("dapo", 2, 2),
    ("dapo", 8, 4),
  )
  def test_micro_batches_and_devices_add_up(self, name, micro, devices):
    change, metrics = _whole_update(name)
    cut, cut_metrics = _model_update(name, devices, micro_batches=micro)
    chex.assert_trees_all_close(cut, change, atol=1e-5)
    chex.assert_trees_all_close(cut_metrics, metrics, atol=1e-5, rtol=1e-5)
    self.assertGreater(optax.tree.norm(change), 0.1)


class PaddingTest(chex.TestCase):
  @parameterized.parameters("trainer", "sampler")
  def test_padding_may_hold_anything(self, old_logprobs):
    """Contract 4: no value and no gradient notices."""
    method = methods.Grpo(beta=0.1).build()
    _, params = _model()
    train_step = _jit(_model_step(method, old_logprobs=old_logprobs))
    start = state.init_state(params, method, optax.sgd(1.0))
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    clean = _rollout()
    on, seen = clean.mask, clean.prompt_mask
    dirty = clean.replace(
      old_logprobs=jnp.where(on, clean.old_logprobs, jnp.inf),
      completions=jnp.where(on, clean.completions, 10**6),
      prompts=jnp.where(seen, clean.prompts, -7),
      extras={"behaviour_logprobs": jnp.where(on, clean.old_logprobs, jnp.nan)},
    )
    self.assertFalse(seen.all())
    one, two = (
      train_step(start, rollout, reference) for rollout in (clean, dirty)
    )
    chex.assert_trees_all_equal(one, two)
    chex.assert_tree_all_finite(one)

  def test_reference_log_probs_of_padding_are_never_read(self):
    method = methods.Grpo(beta=0.1).build()
    rollout = _rollout().replace(ref_logprobs=_rollout().old_logprobs)
    bad = jnp.where(rollout.mask, rollout.ref_logprobs, -jnp.inf)

    def loss(params, rollout):
      scores = _bag_score(params, rollout)
      advantages = base.per_token(method.advantage(rollout), rollout.mask)
      weights = method.weighting(rollout.mask, rollout.weights)
      return method.objective(scores, rollout, advantages, weights)[0]

    chex.assert_trees_all_equal(
      jax.value_and_grad(loss)(_bag(), rollout),
      jax.value_and_grad(loss)(_bag(), rollout.replace(ref_logprobs=bad)),
    )

  def test_a_dropped_row_teaches_nothing(self):
    method = methods.Grpo(beta=0.0).build()
    rollout = _rollout()
    other = rollout.replace(
      completions=rollout.completions.at[5].add(1) % V,
      rewards=rollout.rewards.at[5].set(-100.0),
    )
    start = state.init_state(_bag(), method, optax.sgd(1.0))
    train_step = jax.jit(
      step.make_train_step(_bag_score, method, optax.sgd(1.0))
    )
    one, two = (train_step(start, r, None)[0] for r in (rollout, other))
    chex.assert_trees_all_equal(one, two)


def _bag():
  """A policy without context: one logit a token."""
  return {"logits": jax.random.normal(jax.random.key(7), (V,))}


def _bag_score(params, rollout):
  logprobs = jax.nn.log_softmax(params["logits"])[rollout.completions]
  return rollouts.types.Scores(logprobs=jnp.where(rollout.mask, logprobs, 0.0))


def _bag_step(method, rate, rollout=None, reference=None, **knobs):
  optimizer = optax.sgd(rate)
  start = state.init_state(_bag(), method, optimizer)
  train_step = step.make_train_step(_bag_score, method, optimizer, **knobs)
  return jax.jit(train_step)(start, rollout or _rollout(), reference)


def _by_hand(method, rate, mini_batches, epochs):
  """Several updates as a reader would write them."""
  rollout, params = _rollout(), _bag()
  advantages = base.per_token(method.advantage(rollout), rollout.mask)
  old = _bag_score(params, rollout).logprobs
  rollout = rollout.replace(old_logprobs=old)
  size = B * G // mini_batches
  losses = []
  for index in range(mini_batches * epochs):
    first = index % mini_batches * size
    rows = slice(first, first + size)
    piece = jax.tree.map(lambda x, rows=rows: x[rows], rollout)
    weights = method.weighting(piece.mask, piece.weights)

    def loss(params, piece=piece, rows=rows, weights=weights):
      scores = _bag_score(params, piece)
      return method.objective(scores, piece, advantages[rows], weights)[0]

    value, grads = jax.value_and_grad(loss)(params)
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    losses.append(float(value))
  return params, np.mean(losses)


class SeveralUpdatesTest(chex.TestCase):
  @parameterized.parameters(
    ("grpo", 2, 1, 1), ("grpo", 1, 3, 2), ("dapo", 4, 2, 2)
  )
  def test_they_equal_a_sequence_written_by_hand(
    self, name, mini, epochs, micro
  ):
    method = METHODS[name].build()
    new, metrics = _bag_step(
      method, 1.0, mini_batches=mini, epochs=epochs, micro_batches=micro
    )
    params, loss = _by_hand(method, 1.0, mini, epochs)
    chex.assert_trees_all_close(new.params, params, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, atol=1e-5)
    self.assertEqual(int(new.step), 1)

  def test_the_ratio_leaves_one_and_is_clipped(self):
    method = METHODS["grpo"].build()
    _, once = _bag_step(method, 20.0)
    self.assertEqual(once["clip_fraction"], 0.0)
    self.assertEqual(once["approx_kl"], 0.0)
    _, often = _bag_step(method, 20.0, epochs=4)
    self.assertGreater(often["clip_fraction"], 0.05)
    self.assertGreater(often["approx_kl"], 1e-3)


class OldLogprobsTest(chex.TestCase):
  def test_the_trainer_starts_at_ratio_one_the_sampler_where_it_says(self):
    method = METHODS["grpo"].build()
    _, trainer = _bag_step(method, 1.0)
    self.assertEqual(trainer["approx_kl"], 0.0)
    _, sampler = _bag_step(method, 1.0, old_logprobs="sampler")
    self.assertGreater(sampler["approx_kl"], 0.01)

  def test_they_agree_when_the_sampler_is_exact(self):
    method = METHODS["grpo"].build()
    exact = _bag_score(_bag(), _rollout()).logprobs
    rollout = _rollout().replace(old_logprobs=exact)
    for knobs in ({}, {"mini_batches": 2, "epochs": 2}):
      runs = [
        _bag_step(method, 1.0, rollout, old_logprobs=who, **knobs)[0].params
        for who in ("trainer", "sampler")
      ]
      chex.assert_trees_all_close(*runs, atol=1e-6)

  @parameterized.parameters(
    {}, {"epochs": 2}, {"micro_batches": 4}, {"old_logprobs": "sampler"}
  )
  def test_the_gap_to_the_sampler_is_measured_before_any_update(self, **knobs):
    rollout = _rollout()
    now = _bag_score(_bag(), rollout).logprobs
    gap = np.abs(now - rollout.old_logprobs)[np.asarray(rollout.mask)]
    _, metrics = _bag_step(METHODS["grpo"].build(), 1.0, **knobs)
    np.testing.assert_allclose(metrics["sampler_gap_max"], gap.max(), rtol=1e-5)
    if knobs.get("mini_batches", 1) == 1:
      np.testing.assert_allclose(
        metrics["sampler_gap_mean"], gap.mean(), rtol=1e-5
      )

  def test_an_unknown_choice_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'trainer' or 'sampler', got 'x'"):
      _bag_step(METHODS["grpo"].build(), 1.0, old_logprobs="x")


class StaleTest(chex.TestCase):
  """Rows of an older policy have the policy that sampled them as pi_old."""

  def _rollout(self, stale):
    stale = jnp.broadcast_to(jnp.float32(stale), (B * G,))
    rollout = _rollout()
    return rollout.replace(extras=rollout.extras | {"stale": stale})

  @parameterized.product(
    knobs=({}, {"micro_batches": 4}, {"epochs": 2}, {"mini_batches": 2}),
    who=("trainer", "sampler"),
  )
  def test_all_stale_is_the_sampler_and_none_is_as_without(self, knobs, who):
    method = METHODS["grpo"].build()
    for stale, like in ((0.0, who), (1.0, "sampler")):
      new, metrics = _bag_step(
        method, 1.0, self._rollout(stale), old_logprobs=who, **knobs
      )
      same, expected = _bag_step(method, 1.0, old_logprobs=like, **knobs)
      chex.assert_trees_all_equal(new.params, same.params)
      self.assertEqual(metrics["approx_kl"], expected["approx_kl"])

  def test_the_gap_is_that_of_the_fresh_rows(self):
    stale = jnp.arange(B * G) < 4
    _, metrics = _bag_step(
      METHODS["grpo"].build(), 1.0, self._rollout(stale.astype(jnp.float32))
    )
    rollout = _rollout()
    now = _bag_score(_bag(), rollout).logprobs
    fresh = np.asarray(rollout.mask & ~stale[:, None])
    gap = np.abs(now - rollout.old_logprobs)[fresh]
    np.testing.assert_allclose(metrics["sampler_gap_max"], gap.max(), rtol=1e-5)
    np.testing.assert_allclose(
      metrics["sampler_gap_mean"], gap.mean(), rtol=1e-5
    )

  def test_no_correction_for_the_gap_comes_on_top_of_the_ratio(self):
    seen = {}

    def look(rollout):
      gap = rollout.extras["trainer_logprobs"]
      gap = jnp.where(rollout.mask, gap - rollout.extras["sampler_logprobs"], 0)
      seen["metric/stale_gap"] = jnp.abs(gap[:4]).max()
      seen["metric/fresh_gap"] = jnp.abs(gap[4:]).max()
      return rollout.replace(extras=rollout.extras | seen)

    method = dataclasses.replace(
      METHODS["grpo"].build(),
      transform=chain.stateless(look),
      needs=frozenset({"old_scores"}),
    )
    stale = (jnp.arange(B * G) < 4).astype(jnp.float32)
    _, metrics = _bag_step(method, 1.0, self._rollout(stale))
    self.assertEqual(metrics["stale_gap"], 0.0)
    self.assertGreater(metrics["fresh_gap"], 0.1)


def _forwards(method, **knobs):
  """How often the model is called in one traced step."""
  calls = []

  def counted(params, rollout):
    calls.append(1)
    return _bag_score(params, rollout)

  train_step = step.make_train_step(counted, method, optax.sgd(1.0), **knobs)
  start = state.init_state(_bag(), method, optax.sgd(1.0))
  jax.eval_shape(train_step, start, _rollout(), _bag())
  return len(calls)


class ReferenceTest(chex.TestCase):
  @parameterized.parameters(
    (0.0, 1, {}),
    (0.1, 2, {}),
    (0.0, 2, {"epochs": 2}),
    (0.1, 3, {"epochs": 2}),
    (0.0, 1, {"epochs": 2, "old_logprobs": "sampler"}),
  )
  def test_no_forward_runs_that_nothing_needs(self, beta, count, knobs):
    self.assertEqual(_forwards(methods.Grpo(beta=beta).build(), **knobs), count)

  def test_without_beta_the_program_has_the_work_of_one_model(self):
    def flops(beta):
      method = methods.Grpo(beta=beta).build()
      _, params = _model()
      start = state.init_state(params, method, optax.sgd(1.0))
      lowered = jax.jit(_model_step(method)).lower(start, _rollout(), params)
      return lowered.cost_analysis()["flops"]

    alone, with_reference = flops(0.0), flops(0.1)
    self.assertGreater(with_reference, 1.2 * alone)

  def test_the_divergence_starts_at_zero_and_grows(self):
    method = methods.Grpo(beta=0.1).build()
    new, first = _bag_step(method, 1.0, reference=_bag())
    self.assertEqual(first["reference_kl"], 0.0)
    train_step = step.make_train_step(_bag_score, method, optax.sgd(1.0))
    _, second = jax.jit(train_step)(new, _rollout(), _bag())
    self.assertGreater(second["reference_kl"], 1e-4)


class FoundBeforeTest(chex.TestCase):
  @parameterized.parameters({}, {"epochs": 2, "mini_batches": 2})
  def test_what_a_transform_or_a_selection_measures_is_logged(self, **knobs):
    def noted(name, rollout):
      value = rollout.rewards.sum() + 0.25
      return rollout.replace(extras=rollout.extras | {name: value})

    method = dataclasses.replace(
      methods.Dapo().build(),
      transform=chain.stateless(lambda r: noted("metric/before", r)),
      selection=lambda r, advantages: noted("metric/after", r),
    )
    _, metrics = _bag_step(method, 1.0, **knobs)
    expected = _rollout().rewards.sum() + 0.25
    self.assertEqual(metrics["before"], expected)
    self.assertEqual(metrics["after"], expected)


class SplitTest(chex.TestCase):
  def test_rows_stay_in_order_and_scalars_are_repeated(self):
    rollout = _rollout().replace(extras={"coef": jnp.float32(0.5)})
    pieces = step.split(rollout, 8)
    self.assertEqual(pieces.group_size, 2)
    chex.assert_trees_all_equal(pieces.mask.reshape(B * G, T), rollout.mask)
    self.assertEqual(pieces.extras["coef"].shape, (8,))
    self.assertEqual(step.split(rollout, 16).group_size, 1)
    self.assertEqual(step.split(rollout, 2).group_size, G)
