"""Completions whose reward is known beforehand, to try a reward on.

A verifier of this room says how a right answer is written. Of a user's
function, and of a regular expression, only a guess can be made: the answer
itself.
"""

from collections.abc import Iterator
import fractions
import itertools
from typing import NamedTuple

from jaxrl_llm.rewards import answers, exact

_MOST_NUMBERS = 5  # of a countdown that is searched for a solution


class Golden(NamedTuple):
  """Two completions of one problem.

  Attributes:
    right: must score higher.
    wrong: must score lower.
    certain: whether the reward's own rules say so; False: a guess.
  """

  right: str
  wrong: str
  certain: bool


def golden(reward: str, answer: str) -> Golden:
  """A right and a wrong completion for a reward by name.

  Args:
    reward: as registry.load takes it.
    answer: of a problem, as its source gives it.

  Raises:
    ValueError: one line: the reward cannot read such an answer.
  """
  head, _, argument = reward.partition(":")
  if reward == "exact_integer":
    wrong = str(exact.integer(answer) + 1)
    return Golden(f" {answer}", f" {wrong}", True)
  if reward == "math":
    final = answers.after_mark(answer)
    boxed = final if "\\boxed" in final else f"\\boxed{{{final}}}"
    return Golden(boxed, "", True)
  if reward == "countdown":
    return Golden(_solution(answer), "0", True)
  if reward == "think_format":
    return Golden("<think>\n</think>\n", "", True)
  if head == "length" and argument:
    limit = int(argument.partition(":")[0])
    return Golden(answer[:limit].split(" ")[0], "x " * (3 * limit), True)
  return Golden(answer, "", False)


def _solution(answer: str) -> str:
  """An expression for "TARGET: NUMBER NUMBER ..."; "" if none is found."""
  target, _, numbers = answer.partition(":")
  parts = [(fractions.Fraction(n), n) for n in numbers.split()]
  if len(parts) > _MOST_NUMBERS:
    return ""
  wanted = fractions.Fraction(target)
  return next((text for value, text in _reached(parts) if value == wanted), "")


def _reached(parts: list) -> Iterator[tuple]:
  """Every value that uses each part once, with its expression."""
  if len(parts) == 1:
    yield parts[0]
    return
  for i, j in itertools.permutations(range(len(parts)), 2):
    rest = [part for k, part in enumerate(parts) if k not in (i, j)]
    (x, left), (y, right) = parts[i], parts[j]
    results = [(x + y, "+"), (x * y, "*"), (x - y, "-")]
    results += [(x / y, "/")] if y else []
    for value, sign in results:
      yield from _reached([*rest, (value, f"({left} {sign} {right})")])
