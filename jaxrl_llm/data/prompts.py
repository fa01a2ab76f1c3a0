"""Problems to token arrays of one width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxrl_llm.data import sources

if TYPE_CHECKING:  # importing transformers takes seconds
  from jaxrl_llm.data import tokenizers

FIELD = "{prompt}"


def encode_prompts(
  problems: Sequence[sources.Problem],
  tokenizer: "tokenizers.Tokenizer",
  *,
  length: int,
  template: str = FIELD,
  chat: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Writes, tokenises and left-pads the prompts of B problems.

  Args:
    problems: B problems.
    tokenizer: of the model; its pad_id fills what the mask hides.
    length: S, tokens.
    template: text around each prompt; {prompt} is replaced, other braces are
      left alone.
    chat: wraps each text as a user's turn, with the generation prompt.

  Returns:
    tokens [B, S] int32, mask [B, S] bool (true on the prompt's own tokens),
    and the B texts that were tokenised.

  Raises:
    ValueError: one line: a prompt has more than S tokens or none, the template
      has no {prompt}, or the tokenizer has no chat template.
  """
  texts = write_prompts(problems, tokenizer, template=template, chat=chat)
  tokens = np.full((len(problems), length), tokenizer.pad_id, np.int32)
  mask = np.zeros((len(problems), length), bool)
  for row, (problem, text) in enumerate(zip(problems, texts, strict=True)):
    ids = tokenizer.encode(text)
    _check_count(problem, len(ids), length)
    tokens[row, length - len(ids) :] = ids
    mask[row, length - len(ids) :] = True
  return tokens, mask, texts


def write_prompts(
  problems: Sequence[sources.Problem],
  tokenizer: "tokenizers.Tokenizer",
  *,
  template: str = FIELD,
  chat: bool = False,
) -> list[str]:
  """The texts that are tokenised; arguments as in encode_prompts."""
  if FIELD not in template:
    raise ValueError(f"data.template must contain {FIELD}, got {template!r}.")
  texts = [template.replace(FIELD, problem.prompt) for problem in problems]
  if chat:
    return [
      tokenizer.chat(_messages([*problem.before, ("user", text)]))
      for problem, text in zip(problems, texts, strict=True)
    ]
  for problem in problems:
    if problem.before:
      raise ValueError(
        f"problem {problem.id} is a conversation; set data.chat to True, or"
        " leave it out."
      )
  return texts


def _messages(turns) -> list[dict[str, str]]:
  return [{"role": role, "content": content} for role, content in turns]


def _check_count(problem: sources.Problem, count: int, length: int) -> None:
  if count > length:
    raise ValueError(
      f"the prompt of problem {problem.id} has {count} tokens, prompt_length"
      f" is {length}; raise prompt_length to at least {count}, or leave the"
      " problem out."
    )
  if not count:
    raise ValueError(
      f"the prompt of problem {problem.id} has no tokens; a prompt needs at"
      " least one."
    )
