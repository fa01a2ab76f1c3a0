"""Regular expressions as rewards."""

import numpy as np
import pytest

from jaxrl_llm.rewards import format as formats


def test_is_found_anywhere_unless_anchored():
  texts = ["a <b> c", "<b>", "a\n<b>", ""]
  found = formats.make("<b>")([""] * 4, texts, [""] * 4)
  np.testing.assert_array_equal(found, [1, 1, 1, 0])
  anchored = formats.make("^<b>")([""] * 4, texts, [""] * 4)
  np.testing.assert_array_equal(anchored, [0, 1, 0, 0])


def test_a_pattern_may_contain_colons():
  reward = formats.make("Answer: (?:yes|no)")
  assert reward([""], ["Answer: no"], [""]) == [1]


@pytest.mark.parametrize(
  ("pattern", "message"),
  [("", "needs a regular expression"), ("(a", "unterminated subpattern")],
)
def test_a_bad_pattern_is_refused_in_one_line(pattern, message):
  with pytest.raises(ValueError, match=message) as caught:
    formats.make(pattern)
  assert "\n" not in str(caught.value)


def test_thinking_comes_first_and_once():
  texts = ["<think>a</think>b", "<think>\n</think>", "a<think>b</think>"]
  texts += ["<think>a<think>b</think>", "<think>a", "</think>", ""]
  found = formats.think_format([""] * 7, texts, [""] * 7)
  np.testing.assert_array_equal(found, [1, 1, 0, 0, 0, 0, 0])
