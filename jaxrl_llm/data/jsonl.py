"""Problems from JSON lines, in the forms that data sets come in.

    {"prompt", "answer"}, {"question", "answer"}   GSM8K has the second
    {"prompt", "completion"}   texts, or messages {"role", "content"} (TRL)
    {"messages"}   of which the last is the answer, that before it the prompt

An "answer" beside a "completion" is what a reward compares with; without one
it is the completion's last words, after "####".
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
from typing import Any

from jaxrl_llm.data import sources

# Every HELD_OUT-th line of a file, from the first, is its split test.
HELD_OUT = 10

# GSM8K writes the final answer after this mark, at the end of the solution.
MARK = "####"


def load(
  source: str, *, path: str = "", split: str = "train"
) -> list[sources.Problem]:
  """Problems of one file; `id` is the line's position, from 0.

  Args:
    source: the file.
    path: folder that it is in; empty: the working directory.
    split: "test": every tenth line from the first on; "train": the others;
      "all": every line.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line cannot be read, or the split is empty or unknown.
  """
  sources.check_split(split, ("train", "test", "all"), source=source)
  file = pathlib.Path(path) / source
  problems = [
    problem
    for problem in read(file)
    if split == "all" or (problem.id % HELD_OUT == 0) == (split == "test")
  ]
  if not problems:
    raise ValueError(
      f"the split {split!r} of {file} has no problem: it takes"
      f" {'every tenth line' if split == 'test' else 'the other lines'};"
      " add lines to the file, or name the split all."
    )
  return problems


def read(file: pathlib.Path) -> list[sources.Problem]:
  """All problems of a file; blank lines are skipped.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line cannot be read, with its number from 1.
  """
  return [
    dataclasses.replace(problem, id=i)
    for i, problem in enumerate(_problems(file))
  ]


def final_answer(solution: str) -> str:
  """What follows the last "####"; the whole text without one."""
  return solution.rpartition(MARK)[2].strip()


def _problems(file: pathlib.Path) -> Iterator[sources.Problem]:
  """Those of all lines, not yet numbered."""
  if not file.is_file():
    raise FileNotFoundError(
      f"there is no file {str(file)!r}; data.source and data.path name it."
    )
  with file.open(encoding="utf-8-sig") as lines:
    try:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield _problem(f"{file} line {number}", line)
    except UnicodeDecodeError as error:
      raise ValueError(f"{file} is not UTF-8 text: {error}.") from None


def _problem(place: str, line: str) -> sources.Problem:
  try:
    record = json.loads(line)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{place} is not JSON: {error}.") from None
  if not isinstance(record, dict):
    raise ValueError(
      f'{place} must be an object such as {{"prompt": "...", "answer":'
      f' "..."}}, got {type(record).__name__}.'
    )
  if "messages" in record or "completion" in record:
    return _taught(place, record)
  question = "prompt" if "prompt" in record else "question"
  if question not in record or "answer" not in record:
    raise ValueError(
      f"{place} must have the fields prompt (or question) and answer, it has"
      f" {', '.join(record) or 'none'}; or prompt and completion, or messages."
    )
  prompt = record[question]
  if not isinstance(prompt, str) or not prompt:
    raise ValueError(f"{place}: {question} must be text, got {prompt!r:.60}.")
  answer = _answer(place, record["answer"])
  short = final_answer(answer) if question == "question" else answer
  return sources.Problem(0, prompt, short, answer)


def _taught(place: str, record: dict[str, Any]) -> sources.Problem:
  """A prompt with its completion, of texts or of messages."""
  if "messages" in record:
    turns = _turns(place, "messages", record["messages"])
  elif "prompt" not in record:
    raise ValueError(f"{place} has a completion and no prompt.")
  else:
    turns = _turns(place, "prompt", record["prompt"], role="user")
    turns += _turns(place, "completion", record["completion"], role="assistant")
  roles = [role for role, _ in turns]
  if roles[-2:] != ["user", "assistant"]:
    raise ValueError(
      f"{place} must end with a message of the user and one of the assistant,"
      f" which is learnt; its roles are {', '.join(roles)}."
    )
  *before, (_, prompt), (_, solution) = turns
  answer = record.get("answer", final_answer(solution))
  return sources.Problem(
    0, prompt, _answer(place, answer), solution, tuple(before)
  )


def _turns(
  place: str, field: str, value: Any, *, role: str = ""
) -> list[tuple[str, str]]:
  """(role, text) of messages; a text alone is one of `role`."""
  if role and isinstance(value, str) and value:
    return [(role, value)]
  if not isinstance(value, list) or not value:
    kinds = "text or messages" if role else "messages"
    raise ValueError(f"{place}: {field} must be {kinds}, got {value!r:.60}.")
  turns = []
  for message in value:
    found = message if isinstance(message, dict) else {}
    turn = found.get("role"), found.get("content")
    if not all(isinstance(each, str) and each for each in turn):
      raise ValueError(
        f"{place}: {field} must hold messages with role and content, both"
        f" text, got {message!r:.60}."
      )
    turns.append(turn)
  return turns


def _answer(place: str, answer: Any) -> str:
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    raise ValueError(
      f"{place}: answer must be text or a number, got {answer!r:.60}."
    )
  return str(answer)
