"""Contracts 1 to 3: the rollout, its randomness, its log-probs."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.models import cache, families
from jaxrl_llm.rollout import engine, sampling
from jaxrl_llm.training import score

B, G, S, T = 3, 4, 6, 8
STOP = tuple(range(12))  # frequent enough to end rows at every length


@functools.cache
def _model():
  model = families.build(families.TINY)
  params = model.init(jax.random.key(0))
  # Random weights give nearly flat logits; sharpen so that tokens differ.
  return model, params | {"embed": params["embed"] * 5}


def _prompts():
  tokens = jax.random.randint(jax.random.key(1), (B, S), 1, 128)
  mask = jnp.arange(S)[None] >= jnp.array([[0], [2], [5]])
  return jnp.where(mask, tokens, 0), mask


@functools.cache  # tests that ask for the same function share its compilation
def _generate(model, *, length=T, group=G, stop=STOP, **rule):
  rule = {"temperature": 0.7, **rule}
  fn = engine.make_generate(
    model,
    sampling.make_rule(**_rule(**rule)),
    length=length,
    group_size=group,
    stop_ids=stop,
    pad_id=0,
  )
  # Compiled fast rather than well.
  return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def _rule(**knobs):
  default = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, greedy=False)
  return default | knobs


def _run(generate, params, key=0, ids=None, rows=slice(None)):
  prompts, mask = (x[rows] for x in _prompts())
  if ids is None:
    ids = jnp.arange(prompts.shape[0] * G)
  return jax.device_get(
    generate(params, prompts, mask, ids, jax.random.key(key))
  )


class EngineTest(chex.TestCase):
  def test_the_stop_token_is_in_the_completion_and_trained(self):
    model, params = _model()
    out = _run(_generate(model), params)
    lengths = out.mask.sum(1)
    last = np.take_along_axis(out.completions, lengths[:, None] - 1, 1)[:, 0]
    stopped = out.finish_reason == types.FINISH_STOP
    self.assertTrue(stopped.any() and (~stopped).any())
    np.testing.assert_array_equal(np.isin(last, STOP), stopped)
    np.testing.assert_array_equal(lengths[~stopped], T)
    for row, length in zip(out.completions, lengths, strict=True):
      self.assertFalse(np.isin(row[: length - 1], STOP).any())
      self.assertTrue((row[length:] == 0).all())
    contiguous = np.arange(T)[None] < lengths[:, None]
    np.testing.assert_array_equal(out.mask, contiguous)

  def test_log_probs_are_those_of_the_trainer(self):
    model, params = _model()
    out = _run(_generate(model), params)
    prompts, mask = _prompts()
    rollout = types.Rollout(
      prompts=jnp.repeat(prompts, G, 0),
      prompt_mask=jnp.repeat(mask, G, 0),
      completions=out.completions,
      mask=out.mask,
      old_logprobs=out.logprobs,
      rewards=jnp.zeros(B * G),
      weights=jnp.ones(B * G),
      finish_reason=out.finish_reason,
      group_size=G,
    )
    scores = score.make_score(model, temperature=0.7)(params, rollout)
    np.testing.assert_allclose(scores.logprobs, out.logprobs, atol=1e-4)
    self.assertLess(out.logprobs[out.mask].mean(), -0.5)

  def test_log_probs_match_a_full_forward_over_whole_rows(self):
    model, params = _model()
    out = _run(_generate(model), params)
    prompts, mask = _prompts()
    tokens = jnp.concatenate([jnp.repeat(prompts, G, 0), out.completions], 1)
    whole = cache.Causal(
      jnp.concatenate([jnp.repeat(mask, G, 0), out.mask], axis=1)
    )
    hidden, _ = model.apply(params, tokens, whole.positions(), whole)
    logits = hidden[:, S - 1 : -1] @ model.head(params).T / 0.7
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(
      logprobs, jnp.asarray(out.completions)[..., None], 2
    )[..., 0]
    np.testing.assert_allclose(
      np.where(out.mask, chosen, 0.0), out.logprobs, atol=1e-4
    )

  def test_truncated_sampling_reports_both_distributions(self):
    model, params = _model()
    out = _run(_generate(model, top_k=4), params)
    chosen = out.mask
    gap = (out.behaviour_logprobs - out.logprobs)[chosen]
    self.assertTrue((gap >= -1e-6).all())
    self.assertGreater(gap.max(), 1e-3)
    self.assertGreaterEqual(out.behaviour_logprobs[chosen].min(), -20)

  def test_two_steps_share_no_noise(self):
    model, params = _model()
    generate = _generate(model, stop=())
    one, two = (_run(generate, params, key) for key in (0, 1))
    self.assertLess((one.completions == two.completions).mean(), 0.2)
    uniforms = [
      engine.token_uniforms(jax.random.key(k), jnp.arange(8), T) for k in (0, 1)
    ]
    both = np.concatenate([np.ravel(u) for u in uniforms])
    self.assertEqual(len(np.unique(both)), both.size)

  def test_siblings_differ(self):
    model, params = _model()
    out = _run(_generate(model, stop=()), params)
    rows = {tuple(row) for row in out.completions}
    self.assertGreater(len(rows), B * G // 2)

  def test_a_row_does_not_depend_on_its_place_or_neighbours(self):
    model, params = _model()
    generate = _generate(model)
    whole = _run(generate, params)
    ids = jnp.arange(B * G)
    order = jnp.array([2, 0, 1])
    rows = (order[:, None] * G + jnp.arange(G)[None]).reshape(-1)
    moved = _run(generate, params, ids=ids[rows], rows=order)
    np.testing.assert_array_equal(moved.completions, whole.completions[rows])
    alone = _run(generate, params, ids=ids[G : 2 * G], rows=slice(1, 2))
    np.testing.assert_array_equal(
      alone.completions, whole.completions[G : 2 * G]
    )
    np.testing.assert_allclose(
      alone.logprobs, whole.logprobs[G : 2 * G], atol=1e-5
    )

  def test_a_longer_limit_extends_the_same_completions(self):
    model, params = _model()
    short = _run(_generate(model, length=4), params)
    long = _run(_generate(model, length=T), params)
    np.testing.assert_array_equal(
      short.completions[short.mask], long.completions[:, :4][short.mask]
    )

  @parameterized.parameters(1, 2)
  def test_short_limits(self, length):
    model, params = _model()
    out = _run(_generate(model, length=length), params)
    self.assertEqual(out.completions.shape, (B * G, length))
    self.assertTrue(out.mask[:, 0].all())

  def test_the_loop_ends_when_every_row_has_ended(self):
    model, params = _model()
    out = _run(_generate(model, stop=tuple(range(128))), params)
    np.testing.assert_array_equal(out.mask.sum(1), 1)
    self.assertTrue((out.finish_reason == types.FINISH_STOP).all())

  def test_greedy_takes_the_likeliest_token(self):
    model, params = _model()
    out = _run(_generate(model, temperature=1.0, greedy=True, stop=()), params)
    groups = out.completions.reshape(B, G, T)
    np.testing.assert_array_equal(groups, groups[:, :1].repeat(G, 1))

  def test_padding_of_the_prompt_is_never_read(self):
    model, params = _model()
    generate = _generate(model)
    prompts, mask = _prompts()
    args = (mask, jnp.arange(B * G), jax.random.key(0))
    clean = generate(params, prompts, *args)
    dirty = generate(params, jnp.where(mask, prompts, 77), *args)
    chex.assert_trees_all_equal(clean, dirty)
