"""Problems from JSON lines: {"prompt", "answer"} or {"question", "answer"}."""

from collections.abc import Iterator
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
    sources.Problem(i, prompt, answer)
    for i, (prompt, answer) in enumerate(_texts(file))
  ]


def final_answer(solution: str) -> str:
  """What follows the last "####"; the whole text without one."""
  return solution.rpartition(MARK)[2].strip()


def _texts(file: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Prompt and answer of each line."""
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


def _problem(place: str, line: str) -> tuple[str, str]:
  try:
    record = json.loads(line)
  except (json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{place} is not JSON: {error}.") from None
  if not isinstance(record, dict):
    raise ValueError(
      f'{place} must be an object such as {{"prompt": "...", "answer":'
      f' "..."}}, got {type(record).__name__}.'
    )
  question = "prompt" if "prompt" in record else "question"
  if question not in record or "answer" not in record:
    raise ValueError(
      f"{place} must have the fields prompt (or question) and answer, it has"
      f" {', '.join(record) or 'none'}."
    )
  prompt = record[question]
  if not isinstance(prompt, str) or not prompt:
    raise ValueError(f"{place}: {question} must be text, got {prompt!r:.60}.")
  answer = _answer(place, record["answer"])
  return prompt, final_answer(answer) if question == "question" else answer


def _answer(place: str, answer: Any) -> str:
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    raise ValueError(
      f"{place}: answer must be text or a number, got {answer!r:.60}."
    )
  return str(answer)
