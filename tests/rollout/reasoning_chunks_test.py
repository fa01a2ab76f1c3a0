"""Chunks of reasoning, their judges, and what is redundant."""

import types

import numpy as np
import pytest

from jaxrl_llm.data import sources, tokenizers
from jaxrl_llm.rollout import reasoning_chunks

WORDS = ("Wait", "But", "Let")


def _cut(text, **knobs):
  return [text[a:b] for a, b in reasoning_chunks.chunks(text, WORDS, **knobs)]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a Wait b But c", ["a ", "Wait b ", "But c"]),
    ("Wait, Button waits Letter", ["Wait, Button waits Letter"]),
    ("a Wait b</think> But c", ["a ", "Wait b"]),
    ("Let us", ["Let us"]),
    ("Wait Wait", ["Wait ", "Wait"]),
    ("", []),
    ("</think> x", []),
  ],
)
def test_reasoning_is_cut_before_words_of_doubt(text, expected):
  assert _cut(text, merge=False) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a\nb Wait c But d", ["a\nb ", "Wait c But d"]),
    ("a Wait b\n\n But c\nd Let e", ["a Wait b\n\n But c\nd ", "Let e"]),
    ("\n\na\n Wait b", ["\n\na\n Wait b"]),
  ],
)
def test_chunks_of_one_line_join_the_next(text, expected):
  assert _cut(text) == expected


@pytest.mark.parametrize(
  "segment, answer, expected",
  [
    ("it is 7.", "7", True),
    ("it is 17", "7", False),
    ("it is 7.5", "7", False),
    ("it is -7", "7", True),
    ("3.7", "7", False),
    ("1,234 apples", "1234", True),
    ("x = 1234", "1,234", True),
    ("Parisian", "Paris", False),
    ("anything", "", False),
    ("(7)", " 7 ", True),
  ],
)
def test_an_answer_stands_for_itself(segment, answer, expected):
  assert reasoning_chunks.contains_answer(segment, answer) is expected


def _groups(texts, rewards, answer="7", stop=True):
  length = max(map(len, texts)) + 1
  tokens = np.zeros((len(texts), length), int)
  mask = np.zeros(tokens.shape, bool)
  for row, text in enumerate(texts):
    written = [ord(char) for char in text] + [3] * stop
    tokens[row, : len(written)] = written
    mask[row, : len(written)] = True
  samples = types.SimpleNamespace(
    generation=types.SimpleNamespace(completions=tokens, mask=mask),
    texts=texts,
    prompt_texts=["3 + 4 ="],
    problems=[sources.Problem(0, "3 + 4 =", answer)],
  )
  return types.SimpleNamespace(
    samples=samples, rewards=np.float32(rewards), group_size=len(texts)
  )


SAMPLER = types.SimpleNamespace(tokenizer=tokenizers.CharTokenizer())


def _label(found, *, sampler=SAMPLER, name="answer", merge=False):
  return reasoning_chunks.label(
    found, sampler, words=WORDS, name=name, merge=merge
  )


def test_what_follows_the_answer_is_redundant():
  texts = [
    "Let 7 Wait 6 But 7",
    "is 6 Wait 7",
    "is 7 Wait</think>7",
    "is 7 Wait",
    "Wait 6",
  ]
  redundant, ratios = _label(_groups(texts, [1, 1, 1, 0, 1]))
  np.testing.assert_array_equal(
    redundant, [[6, 18], [-1, -1], [5, 9], [-1, -1], [-1, -1]]
  )
  np.testing.assert_allclose(ratios, [1 / 3, 1, 1 / 2])


def test_a_stop_token_is_never_redundant():
  for stop in (True, False):
    redundant, _ = _label(_groups(["7 But"], [1], stop=stop))
    np.testing.assert_array_equal(redundant, [[2, 5]])


def test_an_unscorable_or_empty_row_has_no_chunks():
  redundant, ratios = _label(_groups(["7 But", "", "7"], [np.nan, 1, 0]))
  assert (redundant == -1).all() and ratios == []
  extras = reasoning_chunks.as_extras(_label(_groups(["7 But"], [1])))
  assert {k: v.tolist() for k, v in extras.items()} == {
    "redundant_start": [2],
    "redundant_end": [5],
  }
  for name, extra in reasoning_chunks.EXTRAS.items():
    assert extras[name].dtype == extra.dtype


def test_the_reward_may_judge():
  asked = []

  def rewards_of(samples, rows, texts):
    del samples
    asked.append((list(rows), list(texts)))
    return np.array([np.nan if "?" in t else float("8" in t) for t in texts])

  sampler = types.SimpleNamespace(
    tokenizer=SAMPLER.tokenizer, rewards_of=rewards_of
  )
  found = _groups(["7? Wait 8 But 8", "wrong", "7 Wait"], [1, 0, 1])
  redundant, ratios = _label(found, sampler=sampler, name="reward")
  assert asked == [([0, 0, 0, 2, 2], ["7? ", "Wait 8 ", "But 8", "7 ", "Wait"])]
  np.testing.assert_array_equal(redundant, [[10, 15], [-1, -1], [-1, -1]])
  assert ratios == [2 / 3]


def test_a_function_may_judge(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(
    "def judge(prompts, segments, answers):\n"
    "  assert set(prompts) == {'3 + 4 ='} and set(answers) == {'7'}\n"
    "  return ['six' in segment for segment in segments]\n"
  )
  found = _groups(["six Wait 7"], [1])
  redundant, _ = _label(found, name=f"{file}:judge")
  np.testing.assert_array_equal(redundant, [[4, 10]])
  reasoning_chunks.look_for(f"{file}:judge")
  with pytest.raises(FileNotFoundError, match="judge 'nowhere.py:f'"):
    reasoning_chunks.look_for("nowhere.py:f")
  with pytest.raises(ValueError, match="judge must be answer, reward or"):
    reasoning_chunks.check_judge("model")
