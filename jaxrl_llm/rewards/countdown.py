"""Countdown: an expression that uses given numbers and reaches a target.

An expression is read as a syntax tree and never executed.
"""

import ast
from collections import Counter
from collections.abc import Sequence
import fractions
import operator
import re

import numpy as np

# Longer lines are not expressions over a handful of numbers; they would only
# cost the parser time and recursion depth.
MAX_CHARACTERS = 200

_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}


def countdown(
  prompts: Sequence[str],
  completions: Sequence[str],
  answers: Sequence[str],
) -> np.ndarray:
  """1 if a completion's expression solves the problem, else 0.

  The expression is the content of the last <answer> tag, else the first line
  that is an expression; a trailing "= 24" is dropped. Each number must be used
  exactly once, with + - * / and parentheses; the arithmetic is exact.

  Args:
    prompts: [N] not read.
    completions: [N] texts.
    answers: [N] "TARGET: NUMBER NUMBER ...", as the source countdown gives.

  Returns:
    [N] float32, 0 or 1.

  Raises:
    ValueError: an answer has another form.
  """
  del prompts
  pairs = zip(completions, answers, strict=True)
  return np.array([solves(text, answer) for text, answer in pairs], np.float32)


def solves(completion: str, answer: str) -> bool:
  """Whether the completion's expression reaches the answer's target."""
  form = re.fullmatch(r"\s*(\d+)\s*:((?:\s*\d+\b)+)\s*", answer)
  if not form:
    raise ValueError(
      "answer must be 'TARGET: NUMBER NUMBER ...' for countdown, got"
      f" {answer!r}."
    )
  numbers = Counter(int(number) for number in form[2].split())
  tree = _expression(completion)
  if tree is None or Counter(_constants(tree)) != numbers:
    return False
  try:
    return _value(tree) == int(form[1])
  except ZeroDivisionError:
    return False


def _expression(completion: str) -> ast.expr | None:
  """Tree of the completion's first expression, or None."""
  tagged = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
  lines = tagged[-1:] or completion.split("\n")
  trees = (_parse(line.partition("=")[0].strip()) for line in lines)
  return next((tree for tree in trees if tree is not None), None)


def _parse(text: str) -> ast.expr | None:
  text = text.replace("×", "*").replace("÷", "/")
  if len(text) > MAX_CHARACTERS or not re.fullmatch(r"[\d+\-*/() ]+", text):
    return None
  try:
    tree = ast.parse(text, mode="eval").body
  except (SyntaxError, RecursionError, MemoryError, ValueError):
    return None
  return tree if all(map(_legal, ast.walk(tree))) else None


def _legal(node: ast.AST) -> bool:
  """Integers, the four operations and a minus sign; no ** and no //."""
  if isinstance(node, ast.Constant):
    return isinstance(node.value, int)
  allowed = (ast.BinOp, ast.UnaryOp, ast.USub, *_OPERATORS)
  return isinstance(node, allowed)


def _constants(tree: ast.expr) -> list[int]:
  nodes = ast.walk(tree)
  return [node.value for node in nodes if isinstance(node, ast.Constant)]


def _value(tree: ast.expr) -> fractions.Fraction:
  if isinstance(tree, ast.Constant):
    return fractions.Fraction(tree.value)
  if isinstance(tree, ast.UnaryOp):
    return -_value(tree.operand)
  operate = _OPERATORS[type(tree.op)]
  return operate(_value(tree.left), _value(tree.right))
