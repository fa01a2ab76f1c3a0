"""A small reward for each sentence: how well a corpus supports its fact.

Host code; see methods/corver.py.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rewards import functions
from jaxrl_llm.rollout import fact_counts, plans, sentences, spans

EXTRAS = {"sentence_rewards": types.Extra(("N", "T"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiers:
  """The reward of a sentence by the count of its fact.

  Attributes:
    absent: for a count of 0.
    rare: below `few`.
    common: from `many` on; between the two it is 0.
    few: count.
    many: count.
  """

  absent: float = -0.3
  rare: float = -0.1
  common: float = 0.1
  few: int = 5
  many: int = 20

  def __post_init__(self):
    """Raises ValueError unless more support is never worth less."""
    if not self.absent <= self.rare <= 0 <= self.common:
      raise ValueError(
        "absent, rare, 0 and common must not fall, got"
        f" {self.absent}, {self.rare}, 0 and {self.common}."
      )
    if not 1 <= self.few <= self.many:
      raise ValueError(
        f"1, few and many must not fall, got 1, {self.few} and {self.many}."
      )

  def __call__(self, counts: Sequence[int | None]) -> Float[np.ndarray, "S"]:
    """Of each count; None, a sentence without a query, is worth 0."""
    given = np.array([self.few if c is None else c for c in counts], int)
    cases = [given == 0, given < self.few, given < self.many]
    rewards = np.select(cases, [self.absent, self.rare, 0.0], self.common)
    known = np.array([count is not None for count in counts], bool)
    return np.where(known, rewards, 0.0)


class Tools(NamedTuple):
  """What facts are found and counted with.

  Attributes:
    extract: sentences -> facts of each.
    count: queries -> counts.
  """

  extract: fact_counts.Extractor
  count: fact_counts.Counter

  def counts(self, texts: Sequence[str]) -> list[int | None]:
    """Of the main fact of each sentence; None where nothing can be asked."""
    found = self.extract(texts)
    queries = [fact_counts.query(facts) for facts in found]
    asked = [query for query in queries if query]
    answers = iter(self.count(asked) if asked else [])
    return [int(next(answers)) if query else None for query in queries]


def check(
  *, corpus: str = "", unit: str = "", counter: str = "", extractor: str = ""
) -> None:
  """Looks whether load() has what it needs; arguments as there.

  Raises:
    ValueError: there is neither a corpus nor a counter, or both; or a function
      is not named.
    FileNotFoundError: there is no such file.
  """
  del unit
  if bool(corpus) == bool(counter):
    raise ValueError(
      "facts are counted in a corpus (method.corpus, a text file or folder) or"
      " by a function (method.counter, file.py:function); give one of them,"
      f" got {corpus!r} and {counter!r}."
    )
  if corpus and not pathlib.Path(corpus).expanduser().exists():
    raise FileNotFoundError(f"corpus: there is no file or folder {corpus!r}.")
  for kind, name in (("counter", counter), ("extractor", extractor)):
    if name:
      functions.split(name, kind)


def load(
  *,
  corpus: str = "",
  unit: str = "paragraph",
  counter: str = "",
  extractor: str = "",
) -> Tools:
  """Makes the tools; a corpus is read now.

  Args:
    corpus: text file or folder for fact_counts.Corpus.
    unit: of the corpus.
    counter: "file.py:function" of a user's own, in the place of a corpus; its
      argument is a list of queries, each a tuple of words.
    extractor: the same in the place of fact_counts.facts; its argument is a
      list of sentences.

  Raises:
    ValueError, FileNotFoundError: as check().
  """
  check(corpus=corpus, counter=counter, extractor=extractor)
  return Tools(
    extract=functions.load(extractor, kind="extractor", takes="(sentences)")
    if extractor
    else fact_counts.facts,
    count=functions.load(counter, kind="counter", takes="(queries)")
    if counter
    else fact_counts.Corpus(corpus, unit=unit),
  )


def plan(
  tiers: Tiers, *, inner: types.Plan | None = None, **names: str
) -> types.Plan:
  """Adds the reward of its sentence to each token; 0 where it has none.

  Args:
    tiers: counts to rewards.
    inner: gathers the groups; None takes one round.
    **names: for load(), which is called in the first step.
  """
  tools = functools.cache(lambda: load(**names))

  def annotate(found, state, tokenizer):
    rewards, aligned, counts = of_completions(
      found.samples, tokenizer, tools(), tiers
    )
    return {"sentence_rewards": rewards}, state, _metrics(aligned, counts)

  return plans.annotated(
    annotate, EXTRAS, inner=inner, check=lambda: check(**names)
  )


def of_completions(
  samples: Any, tokenizer: Any, tools: Tools, tiers: Tiers
) -> tuple[
  Float[np.ndarray, "N T"], list[sentences.Aligned], list[list[int | None]]
]:
  """Rewards of tokens, sentences and counts; facts are asked all at once.

  Args:
    samples: of the collector.
    tokenizer: that decoded them.
    tools: see Tools.
    tiers: see Tiers.
  """
  of_tokens = spans.completion_spans(samples, tokenizer)
  rows = zip(of_tokens, samples.texts, strict=True)
  aligned = [sentences.align(tokens, text) for tokens, text in rows]
  texts = [text for each in aligned if each.usable for text in each.texts]
  answers = iter(tools.counts(texts))
  counts = [
    [next(answers) if each.usable else None for _ in each.texts]
    for each in aligned
  ]
  rewards = EXTRAS["sentence_rewards"].zeros(
    N=of_tokens.shape[0], T=of_tokens.shape[1]
  )
  for row, (each, own) in enumerate(zip(aligned, counts, strict=True)):
    rewards[row] = sentences.spread(each, tiers(own))
  return rewards, aligned, counts


def _metrics(aligned, counts) -> dict[str, float]:
  asked = [count for row in counts for count in row if count is not None]
  known = np.asarray(asked or [0])
  return {
    "plan/sentences": float(np.mean([len(each.texts) for each in aligned])),
    "plan/facts": len(asked) / len(counts),
    "plan/unsupported": float((known == 0).mean()) if asked else 0.0,
    "plan/unaligned": float(np.mean([not each.usable for each in aligned])),
  }
