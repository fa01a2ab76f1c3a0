"""The verifier of Countdown."""

import pytest

from jaxrl_llm.data import sources
from jaxrl_llm.rewards import countdown


def score(completion, answer="16: 2 3 5"):
  return float(countdown.countdown([""], [completion], [answer])[0])


@pytest.mark.parametrize(
  "completion",
  [
    " (3 + 5) * 2",
    " (3 + 5) * 2 = 16\nNumbers 9 9 9, target 27: 9 + 9 + 9 = 27",
    "I try.\n2 * (5 + 3)",
    "3 * 5 = 15, plus 2...\n<answer>(3+5)*2</answer>",
    "<answer>2</answer> no: <answer>(3+5)*2 = 16</answer>",
    "(3 + 5) × 2",
    "-(-3 - 5) * 2",
  ],
)
def test_a_solution_scores_one(completion):
  assert score(completion) == 1


@pytest.mark.parametrize(
  "completion",
  [
    "3 + 5 + 2",  # another value
    "16",  # the target itself
    "2 * 3 + 5 + 5",  # a number twice
    "8 * 2",  # numbers that are not there
    "3 + 5 + 2\n(3 + 5) * 2",  # the first expression counts
    "2 ** (3 + 1)",
    "3 // 5 + 2",
    "5 / (3 - 3) + 2",
    "(3 + 5 * 2",
    "__import__('os')",
    "",
    "(" * 150 + "3" + ")" * 150,
    "1" * 1000,
    "03 + 5",
    "(3)(5)(2)",
  ],
)
def test_anything_else_scores_zero(completion):
  assert score(completion) == 0


def test_arithmetic_is_exact():
  assert score("(1 / 3 + 7) * 3", "22: 1 3 3 7") == 1
  assert score("49 * (1 / 49) * 2", "2: 49 1 49 2") == 1


def test_an_answer_of_another_form_is_named():
  with pytest.raises(ValueError, match="TARGET: NUMBER.*got '16'"):
    score("1", "16")


def test_shown_examples_are_solutions():
  prompt = sources.load("countdown", split="test")[0].prompt
  for line in prompt.split("\n")[:2]:
    question, _, solution = line.partition(":")
    numbers, target = question.removeprefix("Numbers ").split(", target ")
    assert score(solution, f"{target}: {numbers}") == 1
