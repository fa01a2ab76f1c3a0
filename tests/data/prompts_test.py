"""Prompts as arrays."""

import numpy as np
import pytest

from jaxrl_llm.data import prompts, sources


class Characters:
  """One id a character; see tokenizers.Tokenizer."""

  vocab_size, pad_id, stop_ids = 128, 9, (9,)

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode()

  def chat(self, messages):
    (message,) = messages
    return f"<{message['role']}>{message['content']}</>"


def encode(*texts, length=12, **arguments):
  problems = [sources.Problem(40 + i, t, "") for i, t in enumerate(texts)]
  return prompts.encode_prompts(
    problems, Characters(), length=length, **arguments
  )


def test_rows_are_padded_on_the_left():
  tokens, mask, texts = encode("ab", "abc\tdefghijk", length=12)
  assert tokens.shape == mask.shape == (2, 12)
  assert tokens.dtype == np.int32 and mask.dtype == bool
  np.testing.assert_array_equal(tokens[0], [9] * 10 + [97, 98])
  np.testing.assert_array_equal(mask[0], [False] * 10 + [True] * 2)
  assert mask[1].all()  # its tab has the id of the padding
  assert texts == ["ab", "abc\tdefghijk"]


def test_template_and_chat_surround_the_prompt():
  tokens, mask, texts = encode(
    "a{x}", length=40, template="Q {0}: {prompt} A {", chat=True
  )
  assert texts == ["<user>Q {0}: a{x} A {</>"]
  assert bytes(tokens[0][mask[0]].tolist()).decode() == texts[0]


def test_a_prompt_of_exactly_the_length_fits_and_no_longer_one():
  assert encode("a" * 12)[1].all()
  message = "prompt of problem 41 has 13 tokens, prompt_length is 12"
  with pytest.raises(ValueError, match=message) as caught:
    encode("a", "a" * 13)
  assert "\n" not in str(caught.value)


def test_a_prompt_without_tokens_is_refused():
  with pytest.raises(ValueError, match="problem 40 has no tokens"):
    encode("")


def test_a_template_without_a_place_for_the_prompt_is_refused():
  with pytest.raises(ValueError, match="must contain {prompt}, got 'x'"):
    encode("a", template="x")
