"""How often the words of a fact stand together in a corpus.

A sentence gives facts (head, relation, tail); the words of head and tail are
looked up together. Host code; see methods/corver.py.
"""

from collections.abc import Callable, Iterable, Sequence
import pathlib
import re

import numpy as np

Fact = tuple[str, str, str]
Query = tuple[str, ...]
# sentences -> the facts of each; queries -> how often each is found
Extractor = Callable[[Sequence[str]], Sequence[Sequence[Fact]]]
Counter = Callable[[Sequence[Query]], Sequence[int]]

PRONOUNS = frozenset(
  "i me my mine myself we us our ours you your yours yourself he him his"
  " himself she her hers herself it its itself they them their theirs"
  " themselves this that these those who whom which there here someone"
  " something anyone anything everyone everything nobody nothing".split()
)
STOP_WORDS = frozenset(
  "the a an of in at on for by with to from and or is was are were be been"
  " being has had have do does did not no but if so as its it".split()
)
_WORD = re.compile(r"\w+")
# Capitalised words side by side, "of" and "the" between them.
_NAME = re.compile(
  r"[A-Z][\w'’-]*(?:\s+(?:(?:of|the|de|von)\s+)*[A-Z][\w'’-]*)*"
)


def facts(sentences: Sequence[str]) -> list[list[Fact]]:
  """A rule in the place of a model: the first two names and what is between.

  Names are capitalised words side by side. A sentence with one name has the
  words behind it, from the first that is no stop word, as its tail; one
  without has no fact. Much weaker than the paper's extractor, a model of 0.5B
  parameters: it knows no grammar and no fact that is not written as names.
  """
  return [_facts(sentence) for sentence in sentences]


def query(found: Iterable[Fact]) -> Query | None:
  """The words to look up: of the first fact whose ends are no pronouns.

  Args:
    found: facts of a sentence; what is no triple of texts is passed over.
  """
  for fact in found:
    if _is_fact(fact):
      return words_of(fact[0], fact[2])
  return None


def words_of(head: str, tail: str) -> Query | None:
  """Different words of head and tail, or None if there are fewer than two."""
  words = {}
  for word in (*content_words(head), *content_words(tail)):
    words.setdefault(word.lower(), word)
  return tuple(words.values()) if len(words) > 1 else None


def content_words(entity: str) -> list[str]:
  """Capitalised words; without any those of three letters; else all of it.

  Stop words and single letters are no names.
  """
  words = entity.strip().replace(",", " ").split()
  words = [word for word in words if word.lower() not in STOP_WORDS]
  names = [word for word in words if len(word) > 1 and word[0].isupper()]
  return names or [word for word in words if len(word) > 2] or [entity.strip()]


class Corpus:
  """Counts the units of a text that have all words of a query.

  Memory: 4 bytes a different word of a unit, all of it in this process.
  """

  def __init__(self, path: str, *, unit: str = "paragraph"):
    """Reads and indexes the text, once.

    Args:
      path: a text file, or a folder whose *.txt, at any depth, are read.
      unit: "paragraph", between blank lines, or "document", a file.

    Raises:
      ValueError: it holds no words.
    """
    units: dict[str, list[int]] = {}
    self.size = 0
    for text in _units(pathlib.Path(path).expanduser(), unit):
      for word in set(_WORD.findall(text.lower())):
        units.setdefault(word, []).append(self.size)
      self.size += 1
    if not units:
      raise ValueError(f"corpus {path!r} holds no words.")
    self._units = {w: np.asarray(u, np.int32) for w, u in units.items()}

  def __call__(self, queries: Sequence[Query]) -> list[int]:
    """In how many units each query's words are, letters' case apart."""
    return [self._count(each) for each in queries]

  def _count(self, words: Query) -> int:
    parts = {part for word in words for part in _WORD.findall(word.lower())}
    nowhere = np.zeros(0, np.int32)
    lists = sorted((self._units.get(p, nowhere) for p in parts), key=len)
    if not lists:
      return 0
    found = lists[0]
    for other in lists[1:]:
      found = np.intersect1d(found, other, assume_unique=True)
    return len(found)


def _units(path: pathlib.Path, unit: str) -> Iterable[str]:
  files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
  for file in files:
    text = file.read_text(encoding="utf-8", errors="replace")
    whole = [text] if unit == "document" else re.split(r"\n\s*\n", text)
    yield from (part for part in whole if part.strip())


def _facts(sentence: str) -> list[Fact]:
  names = [
    match
    for match in _NAME.finditer(sentence)
    if match[0].lower() not in STOP_WORDS
  ]
  if not names:
    return []
  head = names[0]
  if len(names) > 1:
    between = sentence[head.end() : names[1].start()]
    return [(head[0], between.strip(" ,"), names[1][0])]
  rest = _WORD.findall(sentence[head.end() :])
  tail = [word for word in rest if word.lower() not in STOP_WORDS]
  if not tail:
    return []
  relation = rest[: rest.index(tail[0])]
  return [(head[0], " ".join(relation), " ".join(tail))]


def _is_fact(fact: Sequence[str]) -> bool:
  if not isinstance(fact, list | tuple) or len(fact) != 3:
    return False
  ends = fact[0], fact[2]
  return all(
    isinstance(end, str) and end.strip() and end.strip().lower() not in PRONOUNS
    for end in ends
  )
