"""A plan that adds prompts under which a good answer is less likely (GCPO)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rollout import plans

Form = Literal["instruction", "empty"]
PROMPTS, MASK = "negative_prompts", "negative_prompt_mask"


def negative_prompts(
  *,
  form: Form = "instruction",
  instruction: str,
  room: int = 32,
  inner: types.Plan | None = None,
) -> types.Plan:
  """Writes extras["negative_prompts"] and its mask, [N, S + room].

  The text of a prompt, template and chat turns and all, in which the problem's
  own words are followed by a line break and the instruction, or are left out.

  Args:
    form: "instruction" adds one, "empty" leaves the words out. A text of which
      nothing is left is the first token that ends a completion: what comes
      before the beginning of a text.
    instruction: what asks for another answer.
    room: tokens that the instruction may add to the run's prompt_length.
    inner: gathers the groups; None takes one round.

  Raises:
    ValueError: one line, for a bad option; when called, if a prompt does not
      fit or its template hides its words.
  """
  check(form=form, instruction=instruction, room=room)

  def annotate(groups, state, tokenizer):
    samples = groups.samples
    rows, width = samples.prompts.shape
    tokens = np.full((rows, width + room), tokenizer.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    texts = zip(samples.problems, samples.prompt_texts, strict=True)
    for row, (problem, text) in enumerate(texts):
      ids = _encoded(_rewritten(problem, text, form, instruction), tokenizer)
      if len(ids) > width + room:
        raise ValueError(
          f"the negative prompt of problem {problem.id} has {len(ids)} tokens,"
          f" prompt_length and room leave {width + room}; raise room to at"
          f" least {len(ids) - width}."
        )
      tokens[row, -len(ids) :] = ids
      mask[row, -len(ids) :] = True
    size = groups.group_size
    arrays = {PROMPTS: tokens.repeat(size, 0), MASK: mask.repeat(size, 0)}
    return arrays, state, {}

  shape = "N", f"S+{room}"
  extras = {
    PROMPTS: types.Extra(shape, np.int32),
    MASK: types.Extra(shape, bool),
  }
  return plans.annotated(annotate, extras, inner=inner)


def check(*, form: str, instruction: str, room: int) -> None:
  """Raises ValueError, one line, for an option of negative_prompts."""
  if form not in ("instruction", "empty"):
    raise ValueError(f"negative must be instruction or empty, got {form!r}.")
  if form == "instruction" and not instruction.strip():
    raise ValueError(
      "instruction must say something; for none take negative 'empty'."
    )
  if room < 0:
    raise ValueError(f"room must be 0 tokens or more, got {room}.")


def _rewritten(problem: Any, text: str, form: str, instruction: str) -> str:
  """The prompt's text with other words in the place of the problem's own."""
  words = problem.prompt.strip()
  before, found, after = text.rpartition(words)
  if not found:
    raise ValueError(
      f"the text of problem {problem.id} does not hold its prompt as it is:"
      " the chat template rewrites it, so no instruction can be added."
    )
  added = "" if form == "empty" else f"{words}\n{instruction}"
  return before + added + after


def _encoded(text: str, tokenizer: Any) -> list[int]:
  return tokenizer.encode(text) or [tokenizer.stop_ids[0]]
