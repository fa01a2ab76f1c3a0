"""Lengths of text."""

import numpy as np
import pytest

from jaxrl_llm.rewards import length


@pytest.mark.parametrize(
  ("unit", "word"), [("characters", "x"), ("words", "abc ")]
)
def test_is_one_up_to_the_limit_and_zero_from_twice_the_limit(unit, word):
  counts = [0, 3, 4, 5, 6, 8, 20]
  texts = [word * count for count in counts]
  reward = length.make(f"4:{unit}")([""] * 7, texts, [""] * 7)
  np.testing.assert_allclose(reward, [1, 1, 1, 0.75, 0.5, 0, 0])
  assert reward.dtype == np.float32


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("", "must name its unit"),
    ("4", "must name its unit"),
    ("4:tokens", "must name its unit"),
    ("0:words", "positive integer limit, got '0'"),
    ("-1:words", "positive integer limit, got '-1'"),
    ("x:words", "positive integer limit, got 'x'"),
  ],
)
def test_a_bad_argument_is_refused_in_one_line(argument, message):
  with pytest.raises(ValueError, match=message) as caught:
    length.make(argument)
  assert "\n" not in str(caught.value)
