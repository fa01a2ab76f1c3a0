"""Completions of known reward: what is called right is rewarded, and more."""

import pytest

from jaxrl_llm.data import sources
from jaxrl_llm.rewards import golden, registry

CASES = [
  ("exact_integer", "42"),
  ("exact_integer", "-1,200"),
  ("math", "1/2"),
  ("math", "So 3 + 4 = 7.\n#### 7"),
  ("math", "\\boxed{x + 1}"),
  ("countdown", "16: 2 3 5"),
  ("countdown", "27: 4 8 6 1"),
  ("think_format", "anything"),
  ("length:5:words", "a long answer of more words than that"),
  ("length:3:characters", "abcdefg"),
]


@pytest.mark.parametrize(("reward", "answer"), CASES)
def test_the_right_completion_scores_more_than_the_wrong_one(reward, answer):
  pair = golden.golden(reward, answer)
  score = registry.load(reward)
  right, wrong = score(["?"] * 2, [pair.right, pair.wrong], [answer] * 2)
  assert pair.certain and right == 1.0 and wrong == 0.0


def test_every_generated_countdown_has_a_solution():
  score = registry.load("countdown")
  problems = sources.load("countdown", split="test")[:20]
  texts = [golden.golden("countdown", p.answer).right for p in problems]
  answers = [p.answer for p in problems]
  assert score(texts, texts, answers).all()


@pytest.mark.parametrize("reward", ["format:[0-9]", "mine.py:f"])
def test_what_has_no_known_form_is_a_guess(reward):
  assert golden.golden(reward, "7") == ("7", "", False)


def test_an_answer_that_is_no_integer_is_refused():
  with pytest.raises(ValueError, match="must be an integer"):
    golden.golden("exact_integer", "seven")
