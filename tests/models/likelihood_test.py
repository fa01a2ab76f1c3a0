"""A verifier's likelihoods: by hand, whatever is beside a text."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import cache, families, likelihood
from jaxrl_llm.models.weights import resolve

PROMPTS = ["2 + 2 =", "Say hello.", "2 + 2 ="]
TEXTS = ["4", "hello, hello you", ""]
ENDED = np.array([True, False, True])
SMALL = dataclasses.replace(
  families.TINY, width=16, heads=2, head_dim=8, mlp_width=16, max_positions=96
)


@functools.cache
def _loaded():
  params = families.build(SMALL).init(jax.random.key(0))
  params["embed"] = 20 * params["embed"]  # logits that differ
  return resolve.Loaded(
    config=SMALL,
    params=params,
    tokenizer=tokenizers.CharTokenizer(),
    source="random",
  )


@functools.cache
def _verifier(**knobs):
  return likelihood.Verifier(_loaded(), **knobs)


def _by_hand(prompt, text, ended):
  """Whole logits of one row without padding."""
  before = f"user: {prompt}\nassistant:"
  ids = [ord(c) for c in before + text] + [3] * bool(ended)
  rows = cache.Causal(jnp.ones((1, len(ids)), bool))
  model, loaded = families.build(SMALL), _loaded()
  tokens = jnp.asarray([ids])
  hidden, _ = model.apply(loaded.params, tokens, rows.positions(), rows)
  logprobs = jax.nn.log_softmax(hidden[0] @ loaded.params["embed"].T)
  chosen = [logprobs[i - 1, ids[i]] for i in range(len(before), len(ids))]
  return float(np.mean(chosen))


class VerifierTest(chex.TestCase):
  def test_it_is_the_mean_over_the_answers_tokens(self):
    found, tokens = _verifier()(PROMPTS, TEXTS, ENDED)
    wanted = [_by_hand(*row) for row in zip(PROMPTS, TEXTS, ENDED, strict=True)]
    np.testing.assert_allclose(found[:2], wanted[:2], rtol=1e-5)
    self.assertEqual(found[2], 0.0)
    np.testing.assert_array_equal(tokens, [1, 16, 0])
    self.assertLess(found[:2].max(), 0.0)

  def test_other_rows_and_padding_change_nothing(self):
    found, _ = _verifier()(PROMPTS, TEXTS, ENDED)
    alone, _ = _verifier()(PROMPTS[1:2], TEXTS[1:2], ENDED[1:2])
    by_two, _ = _verifier(rows=2)(PROMPTS, TEXTS, ENDED)
    longer, _ = _verifier()([*PROMPTS, "x" * 60], [*TEXTS, "y"], [*ENDED, True])
    np.testing.assert_allclose(alone, found[1:2], rtol=1e-5)
    np.testing.assert_allclose(by_two, found, rtol=1e-5)
    np.testing.assert_allclose(longer[:3], found, rtol=1e-5)

  def test_the_end_counts_if_there_was_one(self):
    both, tokens = _verifier()(["a"] * 2, ["bc"] * 2, [True, False])
    self.assertNotEqual(both[0], both[1])
    np.testing.assert_array_equal(tokens, 2)

  def test_without_chat_the_prompt_is_as_it_is(self):
    chat = _loaded().tokenizer.chat([{"role": "user", "content": "a"}])
    plain, _ = _verifier(chat=False)([chat, "a"], ["b", "b"], [True, True])
    found, _ = _verifier()(["a"], ["b"], [True])
    np.testing.assert_allclose(plain[0], found[0], rtol=1e-5)
    self.assertNotEqual(plain[1], plain[0])

  def test_what_the_context_does_not_hold_is_not_scored(self):
    long = "y" * 200
    found, tokens = _verifier(chat=False)(["x"], [long], [True])
    held, _ = _verifier(chat=False)(["x"], [long[:95]], [False])
    np.testing.assert_allclose(found, held, rtol=1e-5)
    self.assertEqual(tokens[0], 200)


class MeanLogprobTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_padding_is_never_read_and_an_empty_row_is_0(self):
    mask = jnp.array([[True, True, False], [False] * 3])
    logprobs = jnp.where(mask, jnp.array([[-1.0, -3.0, 0.0]]), jnp.nan)
    found = self.variant(likelihood.mean_logprob)(logprobs, mask)
    np.testing.assert_array_equal(found, [-2.0, 0.0])
    grads = jax.grad(lambda x: likelihood.mean_logprob(x, mask).sum())(logprobs)
    np.testing.assert_array_equal(grads, [[0.5, 0.5, 0.0], [0.0] * 3])


class EmptyTest(chex.TestCase):
  @parameterized.parameters(
    ([-1.0, -2.0, 0.0, -3.0], [0, 0, 1, 0], [1, 1, 1, 1], -3.0),
    ([-1.0, -2.0, 0.0, -3.0], [0, 0, 1, 0], [1, 1, 1, 0], -2.0),
    ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1], [1, 1, 1, 1], -20.0),
    ([0.0, jnp.nan, 0.0, 0.0], [1, 0, 1, 1], [1, 0, 1, 1], -20.0),
  )
  def test_it_gets_the_least_of_the_others(self, rewards, empty, rows, least):
    found = likelihood.scored_empty(
      jnp.array(rewards),
      jnp.array(empty, bool),
      jnp.array(rows, float),
      group_size=4,
    )
    wanted = np.where(empty, least, rewards)
    np.testing.assert_array_equal(found, wanted)
