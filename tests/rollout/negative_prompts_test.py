"""Negative prompts: what they say, where, and how long they may be."""

import dataclasses

import numpy as np
import pytest
import scripted_sampler

from jaxrl_llm import methods
from jaxrl_llm.data import prompts, sources, tokenizers
from jaxrl_llm.rollout import negative_prompts, plans

S = 40
TOKENIZER = tokenizers.CharTokenizer()
PROBLEMS = [sources.Problem(i, f"{i} + {i} =", f"{2 * i}") for i in (1, 2)]


def _sampler(**written):
  tokens, mask, texts = prompts.encode_prompts(
    PROBLEMS, TOKENIZER, length=S, **written
  )
  samples = dataclasses.replace(
    scripted_sampler.make_samples(0, 2, 2, 0),
    problems=PROBLEMS,
    prompts=tokens,
    prompt_mask=mask,
    prompt_texts=texts,
  )
  return plans.Sampler(
    step=0,
    batch_size=2,
    problems=lambda: PROBLEMS,
    collect=lambda problems, first: samples,
    greedy=lambda problems: None,
    score=lambda samples: scripted_sampler.score([0, 1, 0, 1]),
    tokenizer=TOKENIZER,
  )


def _gather(written=None, **options):
  """Texts and tokens of the negative prompts of two problems, two rows each."""
  plan = negative_prompts.negative_prompts(
    **({"instruction": "Be wrong."} | options)
  )
  found, _, _ = plan.gather(_sampler(**(written or {})), plan.init())
  tokens, mask = (
    found.extras[name]
    for name in (negative_prompts.PROMPTS, negative_prompts.MASK)
  )
  rows = zip(tokens, mask, strict=True)
  return [TOKENIZER.decode(row[own]) for row, own in rows], tokens, mask


def test_the_instruction_follows_the_words_of_the_problem():
  texts, tokens, mask = _gather()
  first, second = "1 + 1 =\nBe wrong.", "2 + 2 =\nBe wrong."
  assert texts == [first, first, second, second]
  assert tokens.shape == (4, S + 32)
  assert mask[:, -1].all() and (np.diff(mask * 1, axis=1) >= 0).all()


def test_it_stays_inside_template_and_turn():
  texts, *_ = _gather({"template": "Q: {prompt}\nA:", "chat": True})
  assert texts[2] == "user: Q: 2 + 2 =\nBe wrong.\nA:\nassistant:"


def test_an_empty_prompt_keeps_the_template_alone():
  texts, *_ = _gather({"template": "Q: {prompt}\nA:"}, form="empty")
  assert texts[0] == "Q: \nA:"


def test_where_nothing_is_left_stands_the_end_of_a_text():
  _, tokens, mask = _gather(form="empty")
  np.testing.assert_array_equal(tokens[:, -1], TOKENIZER.stop_ids[0])
  np.testing.assert_array_equal(mask.sum(axis=1), 1)


def test_one_that_does_not_fit_is_refused_in_one_line():
  with pytest.raises(ValueError, match="raise room to at least 38") as error:
    _gather(instruction="x" * 70)
  assert "\n" not in str(error.value)
  assert _gather(instruction="x" * 70, room=38)[1].shape == (4, S + 38)


def test_a_template_that_rewrites_the_words_is_refused():
  sampler = _sampler()
  sampler.sample().samples.prompt_texts[0] = "ONE PLUS ONE"
  plan = negative_prompts.negative_prompts(instruction="Be wrong.")
  with pytest.raises(ValueError, match="problem 1 does not hold its prompt"):
    plan.gather(sampler, plan.init())


def test_the_extras_have_the_shapes_that_are_announced():
  _, tokens, mask = _gather(room=20)
  extras = methods.Gcpo(room=20).build().plan.extras
  for name, array in (
    ("negative_prompts", tokens),
    ("negative_prompt_mask", mask),
  ):
    zeros = extras[name].zeros(N=4, S=S, T=3)
    assert (zeros.shape, zeros.dtype) == (array.shape, array.dtype)
