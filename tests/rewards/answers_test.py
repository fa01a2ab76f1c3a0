"""Mathematical equality."""

import threading

import numpy as np
import pytest

from jaxrl_llm.rewards import answers


@pytest.fixture(scope="module")
def math():
  return answers.make()


@pytest.mark.parametrize(
  ("answer", "completion"),
  [
    ("72", "so 48 + 24 = 72\n#### 72"),
    ("72", "#### 72.00"),
    ("18", "#### $18"),
    ("1,234", "She has 1234 dollars."),
    ("1234", "The answer is 1,234."),
    ("72", r"we get \boxed{72}, twice 36"),
    ("5", r"\boxed{5\text{ apples}}"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    ("x^2+1", r"\boxed{1+x^2}"),
    ("(1,2)", r"\boxed{(1,2)}"),
    ("-3", "#### -3"),
    ("half of 10 is <<10/2=5>>5\n#### 5", "#### 5"),
  ],
)
def test_equal_answers_score_one(math, answer, completion):
  assert math([""], [completion], [answer]) == [1]


@pytest.mark.parametrize(
  ("answer", "completion"),
  [
    ("72", "#### 71"),
    ("72", "72 at first\n#### 71"),
    ("72", r"72, no: \boxed{73}"),
    ("72", "I do not know."),
    ("72", ""),
    ("0.5", "#### 0.55"),
    ("x^2+1", r"\boxed{x^2-1}"),
  ],
)
def test_other_answers_score_zero(math, answer, completion):
  assert math([""], [completion], [answer]) == [0]


def test_works_outside_the_main_thread(math):
  found = []
  thread = threading.Thread(
    target=lambda: found.append(math([""], ["#### 3"], ["3"]))
  )
  thread.start()
  thread.join()
  np.testing.assert_array_equal(found, [[1]])


@pytest.mark.parametrize("answer", ["", "   ", "####"])
def test_an_answer_without_mathematics_is_named(math, answer):
  with pytest.raises(ValueError, match="answer must be mathematics"):
    math([""], ["1"], [answer])
