"""What a method may ask the step for: measure, passes, prepare, prompts."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_llm import methods, types
from jaxrl_llm.models import cache, families
from jaxrl_llm.testing import rollouts
from jaxrl_llm.training import score, state, step
from jaxrl_llm.transforms import chain

V, S, T, G, B = 32, 4, 5, 4, 4
SMALL = dataclasses.replace(
  families.TINY, vocab_size=V, width=16, heads=2, head_dim=8, mlp_width=16
)
OLD = frozenset({"old_scores"})


@functools.cache
def _model():
  model = families.build(SMALL)
  params = model.init(jax.random.key(0))
  return model, params | {"embed": params["embed"] * 20}


@functools.cache
def _rollout():
  rollout = rollouts.make_rollout(
    groups=B, group_size=G, length=T, prompt_length=S, vocab_size=V
  )
  other = jnp.repeat((rollout.prompts[::G] * 7 + 3) % V, G, axis=0)
  extras = {
    "other": jnp.concatenate([other, rollout.prompts], axis=1),
    "other_mask": jnp.ones((B * G, 2 * S), bool),
  }
  return rollout.replace(ref_logprobs=None, extras=extras)


def _method(**slots):
  return dataclasses.replace(methods.Dapo().build(), **slots)


def _step(method, **knobs):
  """One step of plain descent; what the method wrote is in the metrics."""
  model, params = _model()
  scorer = score.make_score(model, needs=method.needs)
  train_step = step.make_train_step(scorer, method, optax.sgd(1.0), **knobs)
  start = state.init_state(params, method, optax.sgd(1.0))
  return jax.jit(train_step)(start, _rollout(), None)


def _logged(function):
  """A transform that logs a number of the rollout it is given."""

  def note(rollout):
    found = {"metric/seen": function(rollout)}
    return rollout.replace(extras=rollout.extras | found)

  return chain.stateless(note)


def _mark(rows):
  """A number that knows the order of its rows."""
  return (rows.reshape(-1) * (1.0 + jnp.arange(rows.size))).sum()


class MeasureTest(chex.TestCase):
  @parameterized.parameters({}, {"micro_batches": 4}, {"mini_batches": 2})
  def test_rows_are_condensed_in_their_order(self, **knobs):
    """Also where the batch is scored in pieces that cut groups."""

    def measure(scores, rollout):
      del rollout
      return {"width": (scores.hidden**2).sum(axis=(1, 2))}

    method = _method(
      measure=measure,
      transform=_logged(lambda rollout: _mark(rollout.extras["width"])),
      needs=OLD | {"hidden"},
    )
    _, metrics = _step(method, **knobs)
    model, params = _model()
    scores = score.make_score(model, needs=method.needs)(params, _rollout())
    expected = _mark((scores.hidden**2).sum(axis=(1, 2)))
    np.testing.assert_allclose(metrics["seen"], expected, rtol=1e-4)

  def test_without_a_forward_to_measure_it_is_refused(self):
    with pytest.raises(ValueError, match="needs 'old_scores'"):
      _method(measure=lambda scores, rollout: {}, needs=frozenset())


class PassesTest(chex.TestCase):
  @parameterized.parameters({}, {"micro_batches": 8})
  def test_the_same_completions_after_another_prompt(self, **knobs):
    extra = types.Pass("again", "other", "other_mask")
    method = _method(
      passes=(extra,),
      transform=_logged(lambda rollout: _mark(rollout.extras["again"])),
    )
    _, metrics = _step(method, **knobs)
    rollout = _rollout()
    model, params = _model()
    scorer = score.make_score(model)
    swapped = rollout.replace(
      prompts=rollout.extras["other"], prompt_mask=rollout.extras["other_mask"]
    )
    expected = _mark(scorer(params, swapped).logprobs)
    np.testing.assert_allclose(metrics["seen"], expected, rtol=1e-4)
    here = _mark(scorer(params, rollout).logprobs)
    self.assertGreater(abs(here - expected), 1e-2)


class PromptLogprobsTest(chex.TestCase):
  def test_they_are_those_of_whole_logits(self):
    model, params = _model()
    rollout = _rollout()
    needs = frozenset({"prompt_logprobs"})
    scorer = jax.jit(score.make_score(model, temperature=0.7, needs=needs))
    got = scorer(params, rollout).prompt_logprobs
    rows = cache.Causal(rollout.prompt_mask)
    hidden, _ = model.apply(params, rollout.prompts, rows.positions(), rows)
    logits = jax.nn.log_softmax(hidden @ model.head(params).T / 0.7)
    chosen = jnp.take_along_axis(
      logits[:, :-1], rollout.prompts[:, 1:, None], axis=2
    )[:, :, 0]
    seen = rollout.prompt_mask[:, 1:] & rollout.prompt_mask[:, :-1]
    self.assertFalse(bool(seen.all()))  # some prompts are padded
    expected = jnp.pad(jnp.where(seen, chosen, 0.0), ((0, 0), (1, 0)))
    np.testing.assert_allclose(got, expected, atol=1e-4)

  def test_the_step_hands_them_to_the_method(self):
    method = _method(
      needs=OLD | {"prompt_logprobs"},
      transform=_logged(lambda r: _mark(r.extras["prompt_logprobs"])),
    )
    _, metrics = _step(method, micro_batches=2)
    model, params = _model()
    scores = score.make_score(model, needs=method.needs)(params, _rollout())
    expected = _mark(scores.prompt_logprobs)
    np.testing.assert_allclose(metrics["seen"], expected, rtol=1e-4)


class PrepareTest(chex.TestCase):
  def _method(self, needs=frozenset()):
    """The loss is times the batch's own mean log-prob, which no piece knows."""
    inner = methods.Dapo().build()

    def prepare(rollout, advantages, scores):
      if scores is None:
        total = advantages.sum() + 3.0
      else:
        total = scores.logprobs.sum() / rollout.mask.sum()
      return rollout.replace(extras=rollout.extras | {"total": total})

    def objective(scores, rollout, advantages, weights):
      loss, metrics = inner.objective(scores, rollout, advantages, weights)
      factor = rollout.extras["total"]
      weight = metrics["token_weight"]
      return loss * factor, metrics | {"factor": factor * weight}

    return dataclasses.replace(
      inner, prepare=prepare, objective=objective, needs=needs
    )

  @parameterized.parameters((frozenset(),), (frozenset({"now_scores"}),))
  def test_pieces_see_what_the_whole_batch_says(self, needs):
    method = self._method(needs)
    whole, cut = _step(method), _step(method, micro_batches=8)
    chex.assert_trees_all_close(cut[0].params, whole[0].params, atol=1e-5)
    np.testing.assert_allclose(cut[1]["factor"], whole[1]["factor"], rtol=1e-4)

  def test_scores_are_of_the_policy_before_its_update(self):
    method = self._method(frozenset({"now_scores"}))
    model, params = _model()
    _, once = _step(method)
    scores = score.make_score(model)(params, _rollout())
    expected = scores.logprobs.sum() / _rollout().mask.sum()
    np.testing.assert_allclose(once["factor"], expected, rtol=1e-4)
    _, twice = _step(method, epochs=2)
    self.assertGreater(abs(float(twice["factor"] - expected)), 1e-3)

  def test_with_and_without_scores_it_is_given_the_same_advantages(self):
    def prepare(rollout, advantages, scores):
      del scores
      found = {"total": _mark(advantages)}
      return rollout.replace(extras=rollout.extras | found)

    factors = [
      _step(dataclasses.replace(self._method(needs), prepare=prepare))[1]
      for needs in (frozenset(), frozenset({"now_scores"}))
    ]
    plain, scored = (float(one["factor"]) for one in factors)
    self.assertGreater(abs(plain), 1.0)
    self.assertAlmostEqual(scored, plain, places=4)

  def test_its_scores_have_no_gradient(self):
    """The factor is a constant of the loss."""
    method = self._method(frozenset({"now_scores"}))
    change = jax.tree.map(jnp.subtract, _step(method)[0].params, _model()[1])
    plain = jax.tree.map(
      jnp.subtract, _step(methods.Dapo().build())[0].params, _model()[1]
    )
    factor = _step(method)[1]["factor"]
    chex.assert_trees_all_close(
      change, jax.tree.map(lambda x: x * factor, plain), atol=1e-5
    )


def _forwards(**slots):
  """How often the model is called in one traced step of two updates."""
  calls = []

  def counted(params, rollout):
    calls.append(1)
    logprobs = jnp.where(rollout.mask, params["shift"][None], 0.0)
    return types.Scores(logprobs=logprobs)

  method, optimizer = _method(**slots), optax.sgd(1.0)
  train_step = step.make_train_step(
    counted, method, optimizer, epochs=2, old_logprobs="sampler"
  )
  start = state.init_state({"shift": jnp.zeros(T)}, method, optimizer)
  jax.eval_shape(train_step, start, _rollout(), None)
  return len(calls)


def test_no_forward_runs_that_no_slot_asks_for():
  extra = types.Pass("again", "other", "other_mask")
  assert _forwards() == 1
  assert _forwards(passes=(extra,)) == 2
  assert _forwards(needs=OLD, measure=lambda scores, rollout: {}) == 2
  assert _forwards(prepare=lambda rollout, advantages, scores: rollout) == 1
  assert _forwards(needs=frozenset({"now_scores"})) == 2
