"""A plan that counts what a regular expression finds in completions."""

import re

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import plans


def count_marker(
  name: str, marker: str, *, inner: types.Plan | None = None
) -> types.Plan:
  """Writes extras[name] [N] int32: how often each completion has the marker.

  Args:
    name: of the array.
    marker: a regular expression, searched in the text of a completion, which
      has no special tokens; matches do not overlap.
    inner: gathers the groups; None takes one round.

  Raises:
    ValueError: one line, if it is no regular expression, or matches an empty
      text.
  """
  try:
    pattern = re.compile(marker)
  except re.error as error:
    raise ValueError(
      f"marker must be a regular expression, got {marker!r}: {error}."
    ) from None
  if pattern.search(""):
    raise ValueError(f"marker must not match an empty text, got {marker!r}.")

  def annotate(groups, state, tokenizer):
    del tokenizer
    counts = [len(pattern.findall(text)) for text in groups.samples.texts]
    found = {name: np.asarray(counts, np.int32)}
    return found, state, {f"plan/{name}": float(np.mean(counts))}

  extras = {name: types.Extra(dtype=np.int32)}
  return plans.annotated(annotate, extras, inner=inner)
