"""Where a mark is first written, as a token; and the plan that tells it."""

import re

import numpy as np
import pytest
import scripted_sampler

from jaxrl_llm import types
from jaxrl_llm.data import tokenizers
from jaxrl_llm.rollout import engine, first_match, groups, plans


class Pairs:
  """A tokenizer whose ids are two characters each."""

  def __init__(self, words):
    self.words = words

  def pieces(self, ids):
    return [self.words[index].encode() for index in ids]


def _groups(texts, tokens=None, length=24):
  """Groups of two with these texts, of characters unless told."""
  rows = [list(map(ord, text)) for text in texts] if tokens is None else tokens
  completions = np.zeros((len(texts), length), np.int32)
  mask = np.zeros(completions.shape, bool)
  for row, ids in enumerate(rows):
    completions[row, : len(ids)], mask[row, : len(ids)] = ids, True
  samples = scripted_sampler.make_samples(0, len(texts) // 2, 2, 0)
  generation = engine.Generation(
    completions=completions,
    mask=mask,
    logprobs=-np.ones(mask.shape, np.float32),
    behaviour_logprobs=-np.ones(mask.shape, np.float32),
    finish_reason=np.ones(len(texts), np.int32),
    checksum=np.zeros(len(texts), np.uint32),
  )
  samples = samples.__class__(
    **vars(samples) | {"generation": generation, "texts": list(texts)}
  )
  scored = scripted_sampler.score(np.zeros(len(texts)))
  return groups.fresh(samples, scored, version=0)


MARK = re.compile("```|<code>")


def test_it_is_the_token_that_wrote_the_first_character():
  found = _groups(["ab```c```", "<code>", "no code", "x<code>```"])
  tokens = first_match.first_matches(found, tokenizers.CharTokenizer(), MARK)
  np.testing.assert_array_equal(tokens, [2, 0, -1, 1])
  assert tokens.dtype == np.int32


def test_a_token_of_several_characters_counts_as_one():
  words = ["ab", "c`", "``", "d"]
  found = _groups(["abc```d", "abab"], tokens=[[0, 1, 2, 3], [0, 0]])
  tokens = first_match.first_matches(found, Pairs(words), MARK)
  np.testing.assert_array_equal(tokens, [1, -1])


def test_without_a_match_no_tokenizer_is_asked():
  found = _groups(["plain", "text"])
  tokens = first_match.first_matches(found, None, MARK)
  np.testing.assert_array_equal(tokens, [-1, -1])


def test_the_plan_writes_an_array_and_logs_it():
  found = _groups(["ab```c", "no", "````", "no"])
  inner = plans.one_round()._replace(gather=lambda s, state: (found, state, {}))
  plan = first_match.marked("first_call", "```", inner=inner)
  assert plan.extras == {"first_call": types.Extra(("N",), np.int32)}
  sampler = scripted_sampler.Data([[0, 0]]).sampler(0)
  sampler.tokenizer = tokenizers.CharTokenizer()
  gathered, state, metrics = plan.gather(sampler, plan.init())
  np.testing.assert_array_equal(gathered.extras["first_call"], [2, -1, 0, -1])
  assert metrics == {"plan/first_call_share": 0.5, "plan/first_call": 1.0}
  assert state == plan.init()


@pytest.mark.parametrize("pattern", ["(", "a*", ""])
def test_a_pattern_that_cannot_mark_is_refused(pattern):
  with pytest.raises(ValueError, match="the pattern must"):
    first_match.marked("first_call", pattern)
