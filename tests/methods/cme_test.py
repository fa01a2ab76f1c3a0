"""CME: credit by likelihood alone, and a verifier that is loaded once."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.data import sources
from jaxrl_llm.rollout import collect, engine, groups, plans
from jaxrl_llm.testing import rollouts

VERIFIER = """
import jax

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import families
from jaxrl_llm.models.weights import resolve

CALLS = []


def load(dtype):
  CALLS.append(dtype)
  if len(CALLS) > 1:
    raise AssertionError("loaded twice")
  return resolve.Loaded(
    config=families.TINY,
    params=families.build(families.TINY).init(jax.random.key(0)),
    tokenizer=tokenizers.CharTokenizer(),
    source="random",
  )
"""
TEXTS = ["4", "four", "", "4 4 4"]


def _groups():
  """Two prompts, two completions each; the third is empty."""
  mask = np.arange(6)[None] < np.array([[2], [5], [1], [5]])
  shape = mask.shape
  samples = collect.Samples(
    problems=[
      sources.Problem(id=i, prompt=text, answer="4")
      for i, text in enumerate(("2 + 2 =", "1 + 3 ="))
    ],
    prompts=np.ones((2, 3), np.int32),
    prompt_mask=np.ones((2, 3), bool),
    generation=engine.Generation(
      completions=np.ones(shape, np.int32),
      logprobs=np.zeros(shape, np.float32),
      behaviour_logprobs=np.zeros(shape, np.float32),
      mask=mask,
      finish_reason=np.array([1, 1, 1, 0]),
      checksum=None,
    ),
    prompt_texts=["Q: 2 + 2 =", "Q: 1 + 3 ="],
    texts=TEXTS,
  )
  return groups.Groups(
    samples=samples,
    rewards=np.array([1, 0, 0, 1], np.float32),
    components={},
    version=np.zeros(2, np.int64),
    weights=np.ones(4, np.float32),
  )


def _gathered(method, state):
  sampler = plans.Sampler(
    step=0,
    batch_size=2,
    problems=list,
    collect=lambda problems, first: None,
    greedy=None,
    score=None,
  )
  sampler.sample = _groups
  return method.plan.gather(sampler, state)


class AdvantageTest(chex.TestCase):
  def _credit(self, rollout, logprob, tokens=7):
    extras = {
      "verifier_logprob": logprob,
      "verifier_tokens": jnp.broadcast_to(tokens, rollout.rewards.shape),
    }
    method = methods.Cme().build()
    return method.advantage(rollout.replace(extras=extras))

  def test_a_shift_of_a_prompts_likelihoods_changes_nothing(self):
    rollout = rollouts.make_rollout()
    logprob = -(jnp.arange(8.0) ** 1.5) / 4 - 1
    shift = jnp.repeat(jnp.array([-1.0, -3.0]), 4)
    credit = self._credit(rollout, logprob)
    chex.assert_trees_all_close(
      self._credit(rollout, logprob + shift), credit, atol=1e-5
    )
    self.assertGreater(float(jnp.abs(credit).max()), 0.5)

  def test_no_label_is_read(self):
    rollout = rollouts.make_rollout()
    logprob = -jnp.arange(8.0) - 1
    credit = self._credit(rollout, logprob)
    for rewards in (1 - rollout.rewards, 7 * rollout.rewards):
      other = self._credit(rollout.replace(rewards=rewards), logprob)
      chex.assert_trees_all_equal(other, credit)

  def test_an_empty_answer_is_as_good_as_the_worst(self):
    rollout = rollouts.make_rollout()
    tokens = jnp.where(jnp.arange(8) == 2, 0, 7)
    logprob = jnp.where(tokens == 0, 0.0, -jnp.arange(8.0) - 1)
    credit = self._credit(rollout, logprob, tokens)
    self.assertEqual(credit[2], credit[:4].min())
    self.assertEqual(credit[2], credit[3])
    np.testing.assert_array_equal(
      self._credit(rollout, jnp.zeros(8), tokens=0), 0.0
    )


def test_the_verifier_is_loaded_once_and_in_the_first_step(tmp_path):
  path = tmp_path / "my_verifier.py"
  path.write_text(VERIFIER)
  method = methods.Cme(verifier=f"{path}:load").build()
  state = method.plan.init()
  found, state, metrics = _gathered(method, state)
  again, _, _ = _gathered(method, state)
  extras = found.extras
  chex.assert_trees_all_equal(extras, again.extras)
  for name, extra in method.plan.extras.items():
    assert extras[name].dtype == extra.dtype
    assert extras[name].shape == (4,)
  np.testing.assert_array_equal(extras["verifier_tokens"], [1, 4, 0, 5])
  written = extras["verifier_tokens"] > 0
  assert (extras["verifier_logprob"][written] < 0).all()
  np.testing.assert_allclose(
    metrics["cme/reward"], extras["verifier_logprob"][written].mean()
  )
  assert metrics["cme/empty"] == 0.25
  np.testing.assert_array_equal(found.rewards, _groups().rewards)
  plain = methods.Cme(verifier="tiny", chat=False).build()
  other, _, _ = _gathered(plain, plain.plan.init())
  assert (other.extras["verifier_logprob"] != extras["verifier_logprob"]).any()


class ConfigTest(chex.TestCase):
  @parameterized.parameters(
    ({"verifier": ""}, "verifier must name a model"),
    ({"verifier_dtype": "int8"}, "verifier_dtype must be"),
    ({"rows": 0}, "rows must be at least 1"),
    ({"floor": 1.0}, "floor must be 0 or less"),
    ({"floor": float("-inf")}, "floor must be 0 or less"),
  )
  def test_what_cannot_be_is_refused(self, knobs, message):
    with self.assertRaisesRegex(ValueError, message):
      methods.Cme(**knobs).build()

  def test_a_file_that_is_not_there_is_said_at_once(self):
    with pytest.raises(FileNotFoundError, match="there is no file"):
      methods.Cme(verifier="nowhere.py:load").build()
