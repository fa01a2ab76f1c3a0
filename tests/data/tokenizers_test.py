"""Tokenizers: characters, folders, and byte-level BPE out of GGUF metadata."""

import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models.weights import gguf_tokenizer

TEXTS = (
  "12 + 345 = 357",
  "  two  spaces\n\n\ttab ",
  "héllo wörld, ça va? I'LL don't",
  "漢字 かな 한국어 😀👍🏽",
  "x=1;y=22;z=333;w=4444",
)


def _metadata(**changes):
  """Bytes and a few merges, in the manner of a small GGUF file."""
  pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = ["<s>", "</s>", "<tool>", *pieces, "he", "ll", "hell"]
  kinds = [3, 3, 4] + [1] * (len(tokens) - 3)
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
  } | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}


def _text_tokenizer(**changes):
  return tokenizers.TextTokenizer(gguf_tokenizer.build(_metadata(**changes)))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", gguf_tokenizer.PRE_TOKENIZERS)
def test_bpe_round_trips(pre, text):
  tokenizer = _text_tokenizer(pre=pre)
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_apply_in_their_order():
  tokenizer = _text_tokenizer()
  assert tokenizer.encode("hell") == [tokenizer.vocab_size - 1]
  assert tokenizer.encode("</s>hell")[0] == 1


@pytest.mark.parametrize(
  "pre, pieces",
  [
    ("gpt-2", ["a", "Ġ1234", "Ġb", "!!"]),
    ("smollm", ["a", "Ġ", "1", "2", "3", "4", "Ġb", "!!"]),
    ("qwen2", ["a", "Ġ", "1", "2", "3", "4", "Ġb", "!!"]),
    ("llama-bpe", ["a", "Ġ", "123", "4", "Ġb", "!!"]),
  ],
)
def test_text_is_cut_as_the_model_expects(pre, pieces):
  fast = gguf_tokenizer.build(_metadata(pre=pre))
  cut = fast.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 1234 b!!")
  assert [piece for piece, _ in cut] == pieces


def test_special_tokens_are_dropped_and_user_tokens_kept():
  tokenizer = _text_tokenizer()
  assert tokenizer.encode("<tool>") == [2]
  assert tokenizer.decode([0, 2, *tokenizer.encode("he"), 1]) == "<tool>he"


def test_beginning_token_comes_once():
  tokenizer = _text_tokenizer(add_bos_token=True)
  assert tokenizer.encode("he")[0] == 0
  assert tokenizer.encode("<s>he") == tokenizer.encode("he")
  assert _text_tokenizer().encode("he")[0] != 0


def _pieces(rng, *, prefix):
  """A small SentencePiece vocabulary with a random score for each piece."""
  letters = list("▁abc")
  longer = {"".join(rng.choice(letters, rng.integers(2, 5))) for _ in range(60)}
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  tokens = ["<unk>", "<s>", "</s>", *bytes_, *letters, *sorted(longer)]
  kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
  return _metadata(
    model="llama",
    tokens=tokens,
    token_type=kinds,
    scores=(-rng.permutation(len(tokens)).astype(float)).tolist(),
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
    add_space_prefix=prefix,
  )


def _join_by_score(text, metadata):
  """llama.cpp's llm_tokenizer_spm: joins the best adjacent pair, leftmost."""
  tokens = metadata["tokenizer.ggml.tokens"]
  scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
  parts = list(text.replace(" ", "▁"))
  while True:
    pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
    known = [(scores[p], -i) for i, p in enumerate(pairs) if p in scores]
    if not known:
      break
    at = -max(known)[1]
    parts[at : at + 2] = [pairs[at]]
  return [tokens.index(part) for part in parts]


def test_sentence_pieces_are_joined_by_score():
  for seed in range(5):
    rng = np.random.default_rng(seed)
    metadata = _pieces(rng, prefix=False)
    tokenizer = tokenizers.TextTokenizer(gguf_tokenizer.build(metadata))
    for _ in range(20):
      text = "".join(rng.choice(list(" abc"), 12))
      assert tokenizer.encode(text) == [1, *_join_by_score(text, metadata)]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_sentence_pieces_round_trip(prefix, text):
  metadata = _pieces(np.random.default_rng(0), prefix=prefix)
  tokenizer = tokenizers.TextTokenizer(gguf_tokenizer.build(metadata))
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pad_falls_back_to_a_stop_id():
  assert _text_tokenizer().pad_id == 1
  assert _text_tokenizer(padding_token_id=2).pad_id == 2


def test_end_of_turn_of_the_template_stops():
  tokens = _metadata()["tokenizer.ggml.tokens"]
  changed = ["<|im_end|>" if t == "<tool>" else t for t in tokens]
  fast = gguf_tokenizer.build(_metadata(tokens=changed))
  assert tokenizers.TextTokenizer(fast).stop_ids == (1,)
  fast.chat_template = "{{ messages[0]['content'] + '<|im_end|>' }}"
  assert tokenizers.TextTokenizer(fast).stop_ids == (1, 2)


def test_saved_folder_loads_to_the_same(tmp_path):
  fast = gguf_tokenizer.build(_metadata(pre="smollm"))
  fast.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
  tokenizer = tokenizers.TextTokenizer(fast, stop_ids=[2])
  tokenizer.save(tmp_path)
  again = tokenizers.from_folder(tmp_path)
  for text in TEXTS:
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
  assert again.stop_ids == tokenizer.stop_ids == (1, 2)
  assert again.pad_id == tokenizer.pad_id
  messages = [{"role": "user", "content": "a"}]
  assert again.chat(messages) == tokenizer.chat(messages) == "[a]"


@pytest.mark.parametrize("eos, expected", [(5, (1, 5)), ([5, 7], (1, 5, 7))])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_stop_ids_of_the_folder_are_added(tmp_path, file, eos, expected):
  _text_tokenizer().save(tmp_path)
  (tmp_path / "generation_config.json").unlink()
  content = {"eos_token_id": eos, "model_type": "llama"}
  (tmp_path / file).write_text(json.dumps(content))
  assert tokenizers.from_folder(tmp_path).stop_ids == expected


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model": "t5"}, "model is 't5'; legal: 'gpt2'"),
    ({"pre": "tekken"}, "pre is 'tekken'; legal: default, gpt-2"),
    ({"tokens": None}, "tokens is missing"),
    ({"merges": ["q zz"]}, "merges do not fit"),
    ({"eos_token_id": 10**6}, "eos_token_id is 1000000; legal: below"),
  ],
)
def test_bad_metadata_is_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    gguf_tokenizer.build(_metadata(**changes))
  assert "\n" not in str(caught.value)


def test_folder_without_tokenizer_is_one_line(tmp_path):
  with pytest.raises(ValueError, match="holds no tokenizer; it needs one of"):
    tokenizers.from_folder(tmp_path)


def test_broken_tokenizer_is_one_line(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="cannot read") as caught:
    tokenizers.from_folder(tmp_path)
  assert "\n" not in str(caught.value)


def test_chat_without_a_template_says_what_to_do():
  with pytest.raises(ValueError, match="set data.chat to False"):
    _text_tokenizer().chat([{"role": "user", "content": "a"}])


def test_both_kinds_obey_the_protocol():
  assert isinstance(tokenizers.CharTokenizer(), tokenizers.Tokenizer)
  assert isinstance(_text_tokenizer(), tokenizers.Tokenizer)


def test_characters_round_trip_and_save(tmp_path):
  tokenizer = tokenizers.CharTokenizer()
  text = "".join(map(chr, range(32, 127))) + "\n\n 1 + 2 ="
  ids = tokenizer.encode(text)
  assert tokenizer.decode([0, 0, *ids, 3, 0]) == text
  assert max(ids) < tokenizer.vocab_size
  tokenizer.save(tmp_path)
  again = tokenizers.from_folder(tmp_path)
  assert again.encode(text) == ids
  assert again.decode([0, 0, *ids, 3, 0]) == text
  assert again.stop_ids == tokenizer.stop_ids
  assert (again.pad_id, again.vocab_size) == (0, 128)
  messages = [{"role": "user", "content": "1 + 2"}]
  assert again.chat(messages) == tokenizer.chat(messages)
  assert tokenizer.chat(messages) == "user: 1 + 2\nassistant:"


def test_other_characters_are_refused():
  with pytest.raises(ValueError, match="'é' at character 1"):
    tokenizers.CharTokenizer().encode("hé")


TEMPLATE = (
  "{% for m in messages %}{{ '<im>' + m['role'] + '\n' + m['content'] }}"
  "{{ '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<im>assistant\n' }}{% endif %}"
)


def test_a_text_that_goes_on_has_no_beginning_and_ends_as_it_should():
  fast = gguf_tokenizer.build(_metadata(add_bos_token=True))
  plain = tokenizers.TextTokenizer(fast)
  assert plain.continuation("hell") == plain.encode("hell")[-1:]
  assert plain.ending() == plain.ending(chat=True) == 1  # eos
  fast.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
  fast.chat_template = TEMPLATE
  chat = tokenizers.TextTokenizer(fast)
  assert chat.ending() == 1
  assert chat.ending(chat=True) == fast.get_vocab()["<|im_end|>"]
  assert chat.ending(chat=True) in chat.stop_ids
  assert tokenizers.CharTokenizer().ending(chat=True) == 3
