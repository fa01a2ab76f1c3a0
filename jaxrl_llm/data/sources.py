"""Problems by name: generators, GSM8K, or any JSONL file.

A source is a sequence with random access, so that batching can visit it in any
order and resume anywhere.
"""

from collections.abc import Sequence
import dataclasses
import difflib

# What --data.source may be, for help texts.
SOURCES = {
  "addition": "generated sums",
  "multiplication": "generated products",
  "countdown": "generated: reach a target with given numbers",
  "gsm8k": "grade school mathematics, 7473 training and 1319 test problems",
  "FILE.jsonl": "one file; every tenth line is the split test",
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question and what its answer is compared with.

  Attributes:
    id: position in its source, from 0; names the problem in messages.
    prompt: text.
    answer: text, in the form that the reward expects.
    solution: text that a supervised run imitates; "" if there is none.
    before: turns (role, text) of a conversation before the prompt, which is its
      user's last one; they need a chat template.
  """

  id: int
  prompt: str
  answer: str
  # Neither tells one problem from another.
  solution: str = dataclasses.field(default="", repr=False, compare=False)
  before: tuple[tuple[str, str], ...] = dataclasses.field(
    default=(), repr=False, compare=False
  )


def load(
  source: str,
  *,
  path: str = "",
  split: str = "train",
  digits: int = 2,
  few_shot: bool = True,
  size: int = 4000,
  seed: int = 0,
) -> Sequence[Problem]:
  """Problems of one split; equal arguments give equal problems.

  Args:
    source: a name of SOURCES or a file that ends in .jsonl.
    path: gsm8k: folder with train.jsonl and test.jsonl; empty: through
      tensorflow-datasets. A .jsonl source: folder it is looked up in.
    split: "train" or "test", which share no problem; gsm8k through
      tensorflow-datasets also has the socratic splits, a .jsonl file "all".
    digits: generators: decimal digits of each number.
    few_shot: generators: two solved examples before the question.
    size: generators: number of training problems; all are different.
    seed: generators: which training problems, and their order. The test split
      does not depend on it, so that runs can be compared.

  Raises:
    ValueError: an argument, or the content of a file, one line.
    FileNotFoundError: a file is not there.
  """
  if source.endswith(".jsonl"):
    from jaxrl_llm.data import jsonl

    return jsonl.load(source, path=path, split=split)
  if source == "gsm8k":
    from jaxrl_llm.data import gsm8k

    return gsm8k.load(path, split=split)
  from jaxrl_llm.data import generators

  if source not in generators.GENERATORS:
    raise ValueError(_unknown(source))
  if path:
    raise ValueError(
      f"data.path is {path!r}, but the source {source} is generated; leave"
      " it empty or set data.source."
    )
  return generators.generate(
    source,
    split=split,
    digits=digits,
    few_shot=few_shot,
    size=size,
    seed=seed,
  )


def check_split(split: str, legal: Sequence[str], *, source: str) -> None:
  """Raises ValueError, one line, unless the split is legal."""
  if split not in legal:
    raise ValueError(
      f"split {split!r} is not known for {source}; legal are"
      f" {', '.join(legal)}."
    )


def _unknown(source: str) -> str:
  near = difflib.get_close_matches(source, [*SOURCES][:-1], 1)
  return (
    f"data.source {source!r} is not known; legal are {', '.join(SOURCES)}"
    + (f"; did you mean {near[0]!r}?" if near else ".")
  )
