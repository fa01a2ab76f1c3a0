"""Our logits against transformers on torch, in float32, with left padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxrl_llm.models import cache, families, reference
from jaxrl_llm.models.weights import hf

_SMALL = {
  "vocab_size": 96,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 256,
  "initializer_range": 0.1,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
_GEMMA = _SMALL | {"head_dim": 32, "sliding_window": 5}


def _rope(**settings):
  return {"rope_parameters": {"rope_theta": 10_000.0} | settings}


CASES = {
  "llama": ("Llama", _SMALL),
  "llama_tied": ("Llama", _SMALL | {"tie_word_embeddings": True}),
  "llama_linear": ("Llama", _SMALL | _rope(rope_type="linear", factor=4.0)),
  "llama_llama3": (
    "Llama",
    _SMALL
    | {"head_dim": 32}
    | _rope(
      rope_type="llama3",
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=64,
    ),
  ),
  "qwen2_yarn": (
    "Qwen2",
    _SMALL
    | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
  ),
  "qwen3_yarn_set": (
    "Qwen3",
    _SMALL
    | {"head_dim": 32}
    | _rope(
      rope_type="yarn",
      factor=4.0,
      original_max_position_embeddings=64,
      beta_fast=16.0,
      beta_slow=2.0,
      attention_factor=1.3,
    ),
  ),
  "mistral_window": ("Mistral", _SMALL | {"sliding_window": 5}),
  "mistral": ("Mistral", _SMALL | {"sliding_window": None}),
  "qwen2": ("Qwen2", _SMALL),
  "qwen2_window": (
    "Qwen2",
    _SMALL
    | {
      "use_sliding_window": True,
      "sliding_window": 5,
      "max_window_layers": 1,
      "tie_word_embeddings": True,
    },
  ),
  "qwen3": ("Qwen3", _SMALL | {"head_dim": 32}),
  "gemma2": ("Gemma2", _GEMMA | {"query_pre_attn_scalar": 24}),
  "gemma3": (
    "Gemma3",
    _GEMMA
    | {
      "num_hidden_layers": 3,
      "query_pre_attn_scalar": 16,
      "sliding_window_pattern": 2,
    },
  ),
  "gemma3_linear": (
    "Gemma3",
    _GEMMA
    | {
      "layer_types": ["full_attention", "sliding_attention"],
      "rope_parameters": {
        "full_attention": {
          "rope_type": "linear",
          "factor": 8.0,
          "rope_theta": 1e6,
        },
        "sliding_attention": {
          "rope_type": "default",
          "rope_theta": 1e4,
        },
      },
    },
  ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread():
  """Torch's threads spin beside jax's and slow both down."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


def theirs(name):
  """A random model of transformers, none of whose vectors is special."""
  kind, settings = CASES[name]
  text = "TextConfig" if kind == "Gemma3" else "Config"
  config = getattr(transformers, kind + text)(**settings)
  config._attn_implementation = "eager"
  torch.manual_seed(0)
  model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
  with torch.no_grad():
    for values in model.parameters():
      if values.ndim == 1:  # norms and biases start at 0 or 1
        values.add_(0.3 * torch.randn_like(values))
  return model


def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 96, (4, 20))
  mask = np.arange(20)[None] >= np.array([0, 3, 9, 17])[:, None]
  return np.where(mask, tokens, 0), mask


def their_logits(model, tokens, mask):
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor(mask).long(),
      position_ids=torch.tensor(positions),
    ).logits.numpy()


def our_logits(config, params, tokens, mask):
  model = families.build(config)
  rows = cache.Causal(jnp.asarray(mask))
  apply = jax.jit(model.apply)
  hidden, _ = apply(params, jnp.asarray(tokens), rows.positions(), rows)
  logits = jnp.einsum("rld,vd->rlv", hidden, model.head(params))
  if config.final_softcap:
    logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
  return np.asarray(logits)


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_there_and_back(tmp_path, name):
  model = theirs(name)
  tokens, mask = batch()
  expected = their_logits(model, tokens, mask)[mask]
  assert expected.std() > 0.1
  model.save_pretrained(tmp_path / "in")
  config, params = hf.load(tmp_path / "in")
  got = our_logits(config, params, tokens, mask)[mask]
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
  plain = reference.logits(config, params, tokens[0])  # a row without padding
  assert plain.dtype == np.float64 and mask[0].all()
  np.testing.assert_allclose(plain, expected[:20], rtol=0, atol=1e-4)

  hf.save(tmp_path / "out", config, params, hf_extra={"pad_token_id": 0})
  exported = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", attn_implementation="eager"
  )
  assert type(exported) is type(model) and exported.dtype == torch.float32
  back = their_logits(exported, tokens, mask)[mask]
  np.testing.assert_allclose(back, expected, rtol=0, atol=1e-6)
  assert hf.load(tmp_path / "out")[0] == config
