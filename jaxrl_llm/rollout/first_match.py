"""Where in a completion something is first written, as a token's index."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import groups, plans, spans

NOWHERE = -1


def first_matches(
  found: groups.Groups, tokenizer: Any, pattern: re.Pattern[str]
) -> np.ndarray:
  """Index of the token that wrote the first character of the first match.

  Args:
    found: groups with texts.
    tokenizer: that decoded them; not asked where nothing matches.
    pattern: searched in the text of each completion.

  Returns:
    [N] int32, NOWHERE where a text has no match, or one that no token wrote.
  """
  matches = [pattern.search(text) for text in found.samples.texts]
  tokens = np.full(len(matches), NOWHERE, np.int32)
  if any(matches):
    written = spans.completion_spans(found.samples, tokenizer)
    for row, match in enumerate(matches):
      if match:
        first = spans.first_token(written[row], [match.start()])[0]
        tokens[row] = first if first < len(written[row]) else NOWHERE
  return tokens


def marked(
  name: str, pattern: str, *, inner: types.Plan | None = None
) -> types.Plan:
  """Writes extras[name] [N]: where `pattern` is first written, or NOWHERE.

  Logs plan/NAME, the mean index over the completions that have it, and
  plan/NAME_share, how many have.

  Args:
    name: of the array.
    pattern: a regular expression.
    inner: gathers the groups; None takes one round.

  Raises:
    ValueError: the pattern is none.
  """
  compiled = compile_pattern(pattern)

  def annotate(found, state, tokenizer):
    tokens = first_matches(found, tokenizer, compiled)
    some = tokens != NOWHERE
    metrics = {f"plan/{name}_share": float(some.mean())}
    if some.any():
      metrics[f"plan/{name}"] = float(tokens[some].mean())
    return {name: tokens}, state, metrics

  extra = types.Extra(("N",), np.int32)
  return plans.annotated(annotate, {name: extra}, inner=inner)


def compile_pattern(pattern: str) -> re.Pattern[str]:
  """The pattern compiled; ValueError if it is none or matches the empty text.

  A pattern that matches nothing would match everywhere.
  """
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"the pattern must be a regular expression, got {pattern!r}: {error}."
    ) from None
  if compiled.search(""):
    raise ValueError(
      f"the pattern must not match an empty text, got {pattern!r}."
    )
  return compiled
