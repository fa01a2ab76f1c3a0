"""The rule of exact_integer, and what it shares with the benchmark's rule."""

import numpy as np
import pytest

from jaxrl_llm.rewards import exact


@pytest.mark.parametrize(
  ("completion", "expected"),
  [
    (" 77", 1),
    ("77", 1),
    (" 1 + 76 = 77", 1),  # the last integer counts
    (" 77 + 1 = 78", 0),
    (" 77\n12 + 3 = 15", 1),  # what follows the first line does not
    ("\n77", 0),
    (" 7,7", 1),  # commas are removed
    (" -77", 0),
    (" 77.", 1),
    (" 77.5", 0),
    ("", 0),
    (" seventy-seven", 0),
    ("9" * 10_000, 0),  # longer than Python converts
  ],
)
def test_last_integer_of_the_first_line_counts(completion, expected):
  reward = exact.exact_integer(["12 + 65 ="], [completion], ["77"])
  np.testing.assert_array_equal(reward, np.float32([expected]))


def test_negative_and_grouped_answers_are_integers():
  reward = exact.exact_integer([""] * 2, ["-3", "12345"], ["-3", "12,345"])
  np.testing.assert_array_equal(reward, [1, 1])


def test_an_answer_that_is_no_integer_is_named():
  with pytest.raises(ValueError, match="answer must be an integer.*'1/2'"):
    exact.exact_integer([""], ["1"], ["1/2"])
