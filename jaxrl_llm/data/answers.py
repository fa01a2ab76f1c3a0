"""What a supervised run imitates: prompts with their answers, as tokens.

An answer is the tokens of its text and the one that ends it. Nothing is cut: a
row that is too long is refused by name, before anything runs.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.data import prompts as encoding
from jaxrl_llm.data import sources

if TYPE_CHECKING:  # importing transformers takes seconds
  from jaxrl_llm.data import tokenizers

FIELD = "{answer}"


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt and what is to follow it.

  Attributes:
    id: of its problem.
    prompt: ids; at least one.
    answer: ids, the one that ends it included.
  """

  id: int
  prompt: tuple[int, ...]
  answer: tuple[int, ...]


class Examples(Sequence):
  """Problems as examples, tokenised when they are asked for."""

  def __init__(
    self,
    problems: Sequence[sources.Problem],
    tokenizer: "tokenizers.Tokenizer",
    *,
    prompt_length: int,
    answer_length: int,
    end_id: int,
    template: str = encoding.FIELD,
    answer_template: str = FIELD,
    chat: bool = False,
  ):
    """Reads nothing yet.

    Args:
      problems: with solutions.
      tokenizer: of the model.
      prompt_length: S, tokens.
      answer_length: T, tokens, with the one that ends it.
      end_id: of that.
      template: text around each prompt; {prompt} is replaced.
      answer_template: text around each solution; {answer} is replaced.
      chat: writes prompts with the tokenizer's chat template.

    Raises:
      ValueError: a template lacks its field.
    """
    if FIELD not in answer_template:
      raise ValueError(
        f"data.answer_template must contain {FIELD}, got {answer_template!r}."
      )
    self._problems, self._tokenizer = problems, tokenizer
    self._lengths, self._end = (prompt_length, answer_length), end_id
    self._template, self._around = template, answer_template
    self._chat = chat

  def __len__(self) -> int:
    """Number of examples."""
    return len(self._problems)

  def __getitem__(self, index):
    """An example; a list of them for a slice.

    Raises:
      ValueError: one line: it has no solution, or too many tokens.
    """
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    return self._example(self._problems[index])

  def check(self) -> None:
    """Raises ValueError, one line, for the first that cannot be used."""
    for index in range(len(self)):
      self[index]

  def rollout(
    self, examples: Sequence[Example], *, rows: int | None = None
  ) -> types.Rollout:
    """For the train step: G = 1, and nobody's log-probs and rewards.

    Args:
      examples: at least one.
      rows: N; those beyond the examples repeat the last one with weight 0.
    """
    rows = rows or len(examples)
    filled = [*examples, *[examples[-1]] * (rows - len(examples))]
    size, length = self._lengths
    out = empty(rows, size, length)
    out.prompts[:] = out.completions[:] = self._tokenizer.pad_id
    out.weights[: len(examples)] = 1.0
    for row, example in enumerate(filled):
      first, count = size - len(example.prompt), len(example.answer)
      out.prompts[row, first:] = example.prompt
      out.prompt_mask[row, first:] = True
      out.completions[row, :count] = example.answer
      out.mask[row, :count] = True
    return out

  def _example(self, problem) -> Example:
    if not problem.solution:
      raise ValueError(
        f"problem {problem.id} has no answer to learn from; take another"
        " data.source, or leave the problem out."
      )
    (row,), (real,), _ = encoding.encode_prompts(
      [problem],
      self._tokenizer,
      length=self._lengths[0],
      template=self._template,
      chat=self._chat,
    )
    prompt = row[real].tolist()
    answer = self._around.replace(FIELD, problem.solution)
    ids = [*self._tokenizer.continuation(answer), self._end]
    if len(ids) > self._lengths[1]:
      raise ValueError(
        f"the answer of problem {problem.id} has {len(ids)} tokens with the one"
        f" that ends it, completion_length is {self._lengths[1]}; raise"
        f" completion_length to at least {len(ids)}, or leave the problem out."
      )
    return Example(problem.id, tuple(prompt), tuple(ids))


def empty(rows: int, prompt_length: int, answer_length: int) -> types.Rollout:
  """Host arrays of a rollout, all zeros: its shapes."""
  prompts, answers = (rows, prompt_length), (rows, answer_length)
  return types.Rollout(
    prompts=np.zeros(prompts, np.int32),
    prompt_mask=np.zeros(prompts, bool),
    completions=np.zeros(answers, np.int32),
    mask=np.zeros(answers, bool),
    old_logprobs=np.zeros(answers, np.float32),
    rewards=np.zeros(rows, np.float32),
    weights=np.zeros(rows, np.float32),
    finish_reason=np.full(rows, types.FINISH_STOP, np.int32),
    group_size=1,
  )
