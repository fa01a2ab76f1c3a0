"""Facts, the words that are looked up, the corpus, the reward of a count."""

import types

import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.rollout import fact_counts, fact_rewards

TIERS = fact_rewards.Tiers()


def test_the_reward_grows_with_the_count():
  counts = list(range(100))
  rewards = TIERS(counts)
  assert (np.diff(rewards) >= 0).all()
  assert rewards.min() == -0.3 and rewards.max() == 0.1
  np.testing.assert_array_equal(
    TIERS([None, 0, 1, 4, 5, 19, 20]), [0, -0.3, -0.1, -0.1, 0, 0, 0.1]
  )
  binary = fact_rewards.Tiers(rare=0.0, common=0.0)
  np.testing.assert_array_equal(binary([0, 1, 50, None]), [-0.3, 0, 0, 0])
  assert TIERS([]).shape == (0,)


@pytest.mark.parametrize(
  "knobs",
  [{"absent": 0.1}, {"rare": -0.5}, {"common": -1.0}, {"few": 0}, {"many": 4}],
)
def test_more_support_is_never_worth_less(knobs):
  with pytest.raises(ValueError, match="must not fall"):
    fact_rewards.Tiers(**knobs)


@pytest.mark.parametrize(
  "fact, expected",
  [
    (("Paris", "is in", "France"), ("Paris", "France")),
    (
      ("the First Congress, of", "met", "John Adams"),
      ("First", "Congress", "John", "Adams"),
    ),
    (("theory of light", "is", "old"), ("theory", "light", "old")),
    (("Rome", "is", "rome"), None),
    (("it", "is", "x"), None),
    (("Paris", "is", "of"), ("Paris", "of")),
  ],
)
def test_names_are_looked_up_else_longer_words(fact, expected):
  assert fact_counts.query([fact]) == expected


def test_the_first_fact_with_two_ends_is_taken():
  facts = [
    ("he", "saw", "Rome"),
    ("", "is", "x"),
    ["A", "b"],
    ("Rome", "has", "Mars"),
  ]
  assert fact_counts.query(facts) == ("Rome", "Mars")
  assert fact_counts.query([]) is None
  # A fact without a query is not passed over for the next.
  assert fact_counts.query([("Rome", "", "Rome"), ("A1", "", "B1")]) is None


@pytest.mark.parametrize(
  "sentence, expected",
  [
    ("Paris is in France.", [("Paris", "is in", "France")]),
    (
      "The Bank of England, in London, is old.",
      [("The Bank of England", "in", "London")],
    ),
    (
      "Paris was the capital of fashion.",
      [("Paris", "was the", "capital fashion")],
    ),
    ("the sky glows!", []),
    ("It is in Rome.", []),
    ("He is in Rome.", [("He", "is in", "Rome")]),
    ("Paris.", []),
    ("", []),
  ],
)
def test_our_rule_takes_the_first_two_names(sentence, expected):
  assert fact_counts.facts([sentence]) == [expected]


CORPUS = """Paris is the capital of France.
It lies on the Seine.

Rome hosts Mars, they say; ROME!

France and Italy.
"""


def test_words_are_counted_where_they_stand_together(tmp_path):
  (tmp_path / "deep").mkdir()
  (tmp_path / "a.txt").write_text(CORPUS)
  (tmp_path / "deep" / "b.txt").write_text("mars and rome")
  (tmp_path / "c.md").write_text("Rome and Mars")
  queries = [
    ("Rome", "Mars"),
    ("paris", "Seine"),
    ("Paris", "Italy"),
    ("xyz", "Rome"),
    ("France",),
    ("?",),
  ]
  assert fact_counts.Corpus(str(tmp_path))(queries) == [2, 1, 0, 0, 2, 0]
  whole = fact_counts.Corpus(str(tmp_path), unit="document")
  assert whole(queries) == [2, 1, 1, 0, 1, 0]
  one = fact_counts.Corpus(str(tmp_path / "a.txt"))
  assert one(queries)[0] == 1 and one.size == 3


def test_a_corpus_without_words_is_refused(tmp_path):
  (tmp_path / "a.txt").write_text(" \n\n ! ")
  with pytest.raises(ValueError, match="holds no words"):
    fact_counts.Corpus(str(tmp_path))


def _samples(texts):
  length = max(map(len, texts))
  tokens = np.zeros((len(texts), length), int)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = [ord(char) for char in text]
  return types.SimpleNamespace(
    generation=types.SimpleNamespace(completions=tokens, mask=tokens > 0),
    texts=texts,
  )


def test_tokens_of_an_unsupported_sentence_are_worth_less():
  asked = []

  def count(queries):
    asked.extend(queries)
    return [50 if query == ("Rome", "Mars") else 0 for query in queries]

  tools = fact_rewards.Tools(extract=fact_counts.facts, count=count)
  texts = ["Rome hosts Mars. Rome hosts Paris. so", "", "he knows Rome."]
  rewards, aligned, counts = fact_rewards.of_completions(
    _samples(texts), tokenizers.CharTokenizer(), tools, TIERS
  )
  assert rewards.dtype == np.float32
  expected = [*[0.1] * 16, 0, *[-0.3] * 17, 0, 0, 0]
  np.testing.assert_allclose(rewards[0], expected, rtol=1e-6)
  np.testing.assert_array_equal(rewards[1:, 1:], 0.0)
  assert counts == [[50, 0, None], [], [None]]
  assert asked == [("Rome", "Mars"), ("Rome", "Paris")]
  assert [each.usable for each in aligned] == [True, False, True]


FUNCTIONS = """
def count(queries):
  return [len(query) for query in queries]

def extract(sentences):
  return [[("Aa", "to", "Bb Cc")] for _ in sentences]

def wrong(a, b):
  return []
"""


def test_functions_of_a_users_own(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(FUNCTIONS)
  tools = fact_rewards.load(
    counter=f"{file}:count", extractor=f"{file}:extract"
  )
  assert tools.counts(["any", "other"]) == [3, 3]
  with pytest.raises(TypeError, match="counter .* must take .queries."):
    fact_rewards.load(counter=f"{file}:wrong")
  with pytest.raises(ValueError, match="extractor .* has no function 'extrac'"):
    fact_rewards.load(counter=f"{file}:count", extractor=f"{file}:extrac")


@pytest.mark.parametrize(
  "names, error, message",
  [
    ({}, ValueError, "method.corpus, a text file or folder"),
    ({"corpus": "a", "counter": "b.py:c"}, ValueError, "give one of them"),
    ({"corpus": "nowhere"}, FileNotFoundError, "no file or folder 'nowhere'"),
    ({"counter": "nowhere.py:f"}, FileNotFoundError, "counter 'nowhere.py:f'"),
    ({"counter": "f"}, ValueError, "counter 'f' names no function"),
  ],
)
def test_what_is_missing_is_said_before_the_first_step(names, error, message):
  plan = fact_rewards.plan(TIERS, **names)
  with pytest.raises(error, match=message) as caught:
    plan.check()
  assert "\n" not in str(caught.value)
