r"""The final answer of a completion as a string, to tell which ones agree.

Nothing is verified here: "0.5" and "1/2" are two answers.
"""

from collections.abc import Callable
import re

from jaxrl_llm.rewards import answers, exact

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def mathematical(text: str) -> str:
  r"""What follows the last "####", else the last \boxed{}, else number.

  Case, spaces, dollar signs, thousands separators and a full stop at the end
  are dropped.

  Args:
    text: a completion.

  Returns:
    The answer; "" without any.
  """
  if answers.MARK in text:
    return _plain(answers.after_mark(text))
  boxed = _last_boxed(text)
  if boxed is not None:
    return _plain(boxed)
  numbers = _NUMBER.findall(text)
  return _plain(numbers[-1]) if numbers else ""


def first_line_integer(text: str) -> str:
  """The last integer of the first line, as exact_integer reads it, or ""."""
  found = exact.last_integer(text)
  return "" if found is None else str(found)


def whole(text: str) -> str:
  """The completion itself, without spaces around it."""
  return text.strip()


# How an answer is read, by the reward that reads it so.
READERS: dict[str, Callable[[str], str]] = {
  "math": mathematical,
  "exact_integer": first_line_integer,
  "text": whole,
}


def _plain(answer: str) -> str:
  kept = re.sub(r"[\s$]|\\[,;! ]|(?<=\d),(?=\d{3})", "", answer)
  return kept.rstrip(".").casefold()


def _last_boxed(text: str) -> str | None:
  r"""What is between the braces of the last \boxed{}, nested ones and all."""
  start = text.rfind(r"\boxed{")
  if start < 0:
    return None
  inside = text[start + len(r"\boxed{") :]
  depth = 1
  for place, char in enumerate(inside):
    depth += (char == "{") - (char == "}")
    if not depth:
      return inside[:place]
  return None
