"""Final answers as strings: which completions agree."""

from absl.testing import parameterized

from jaxrl_llm.rewards import final_answer


class FinalAnswerTest(parameterized.TestCase):
  @parameterized.parameters(
    ("so 3 + 4 = 7\n#### 1,007", "1007"),
    ("#### 7.\nand 8", "7"),
    (r"thus \boxed{\frac{1}{2}} and 9", r"\frac{1}{2}"),
    (r"\boxed{1} or rather \boxed{ B }", "b"),
    ("about $12.50", "12.50"),
    ("first 3, then -4.", "-4"),
    ("1/2", "1/2"),
    ("none at all", ""),
    ("", ""),
    ("####", ""),
    (r"\boxed{never closed 5", "5"),
  )
  def test_mathematical(self, text, answer):
    self.assertEqual(final_answer.mathematical(text), answer)

  @parameterized.parameters(
    (" 36\n21 + 15 = 37", "36"), ("1,234", "1234"), ("no", ""), ("\n5", "")
  )
  def test_the_integer_is_of_the_first_line(self, text, answer):
    self.assertEqual(final_answer.first_line_integer(text), answer)

  def test_the_whole_text_is_an_answer_too(self):
    self.assertEqual(final_answer.READERS["text"](" a b\n"), "a b")
