"""Sentences of a completion and the tokens in them."""

import numpy as np
import pytest

from jaxrl_llm.rollout import sentences, spans

THINK = (
  "<think> Paris is in France.  It rains! </think>\n<answer>Paris</answer>"
)


def _align(pieces):
  of_tokens, text = spans.piece_spans([piece.encode() for piece in pieces])
  return sentences.align(of_tokens, text)


def test_sections_are_inside_the_tags_or_everything():
  parts = [THINK[a:b] for a, b in sentences.sections(THINK)]
  assert parts == ["Paris is in France.  It rains!", "Paris"]
  assert sentences.sections("no tags. ") == [(0, 9)]
  assert sentences.sections("<think>  </think> x") == [(0, 19)]
  assert sentences.sections("<answer>7</answer> x") == [(8, 9)]


@pytest.mark.parametrize(
  "text, expected",
  [
    (" One. Two!  Three?\nfour ", ["One.", "Two!", "Three?", "four"]),
    ("3.14 is pi.e. no", ["3.14 is pi.e.", "no"]),
    ("...", ["..."]),
    ("a...\n\n!", ["a...", "!"]),
    ("   ", []),
    ("", []),
  ],
)
def test_sentences_end_before_white_space(text, expected):
  found = sentences.sentences(text, (0, len(text)))
  assert [text[a:b] for a, b in found] == expected


def test_a_token_is_of_the_sentence_of_its_middle():
  # "." ends the first; " B" begins with white space, its middle is the B's
  # left edge: in the second.
  aligned = _align(["A", ".", " ", " B", "x", "! ", ""])
  np.testing.assert_array_equal(aligned.of_tokens, [0, 0, -1, 1, 1, -1, -1])
  assert aligned.texts == ["A.", "Bx!"]


def test_tags_belong_to_no_sentence():
  aligned = _align(
    ["<think>", "Hi", ".", "</think>", " <answer>", "7", "</answer>"]
  )
  np.testing.assert_array_equal(aligned.of_tokens, [-1, 0, 0, -1, -1, 1, -1])
  assert aligned.rate == 1.0 and aligned.usable


def test_without_alignment_nothing_is_spread():
  aligned = sentences.Aligned(np.array([0, -1, -1, -1]), ["A"], 0.25)
  np.testing.assert_array_equal(sentences.spread(aligned, [0.1]), 0.0)
  nothing = _align(["  ", " "])
  assert nothing.texts == [] and not nothing.usable
  np.testing.assert_array_equal(sentences.spread(nothing, []), 0.0)


def test_each_token_has_the_reward_of_its_sentence():
  aligned = _align(["A.", " ", "B.", "  C"])
  np.testing.assert_allclose(
    sentences.spread(aligned, [0.1, -0.3, 0.5]), [0.1, 0.0, -0.3, 0.0]
  )
