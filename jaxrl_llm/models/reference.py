"""A decoder's logits in float64 and numpy: slow, plain, the truth to compare.

One row of tokens, no cache, no padding, no mesh. Of the fast forward only the
rotary frequencies are used; all else is written anew from the papers that
llama.py and gemma.py name.
"""

import numpy as np

from jaxrl_llm.models import api, rope

_GEMMA = ("gemma2", "gemma3")
_CHUNK = 2**14  # rows of the head at a time


def logits(
  config: api.ModelConfig, params: api.Params, tokens: np.ndarray
) -> np.ndarray:
  """Logits after each token of one row.

  Args:
    config: of the model.
    params: its parameters, read layer by layer.
    tokens: [L] ids.

  Returns:
    [L, V] float64, soft-capped where the model does so, without temperature.

  Raises:
    ValueError: if `tokens` is not one row with at least one token.
  """
  tokens = np.asarray(tokens)
  if tokens.ndim != 1 or not tokens.size:
    raise ValueError(f"tokens must be one row [L], got shape {tokens.shape}.")
  x = _float64(params["embed"][tokens])
  if config.family in _GEMMA:
    x = x * config.width**0.5
  for layer in range(config.depth):
    x = _block(config, _Layer(params["layers"], layer), x, layer)
  x = _norm(config, x, _float64(params["final_norm"]))
  head = params["embed"] if config.tied else params["head"]
  spans = range(0, config.vocab_size, _CHUNK)
  out = [x @ _float64(head[start : start + _CHUNK]).T for start in spans]
  return _capped(np.concatenate(out, axis=1), config.final_softcap)


class _Layer:
  """One layer's part of the stacked parameters."""

  def __init__(self, stacked, layer):
    self._stacked, self._layer = stacked, layer

  def __call__(self, *path):
    leaf = self._stacked
    for key in path:
      leaf = leaf[key]
    return _float64(leaf[self._layer])


def _block(config, get, x, layer):
  """Both halves; Gemma also norms what they give."""
  gemma = config.family in _GEMMA
  halves = (
    ("attention", lambda y: _attention(config, get, y, layer)),
    ("mlp", lambda y: _mlp(config, get, y)),
  )
  for name, half in halves:
    out = half(_norm(config, x, get(f"{name}_norm")))
    x = x + (_norm(config, out, get(f"{name}_post_norm")) if gemma else out)
  return x


def _attention(config, get, x, layer):
  slides = bool(config.window) and any(config.layer_windows[layer : layer + 1])
  length = len(x)
  q, k, v = (_heads(config, get, x, name) for name in "qkv")
  q, k = (_turned(config, part, slides) for part in (q, k))
  share = config.heads // config.kv_heads
  k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
  scale = config.query_scale
  scale = config.head_dim**-0.5 if scale is None else scale
  scores = _capped(
    np.einsum("qhd,khd->hqk", q, k) * scale, config.attention_softcap
  )
  age = np.arange(length)[:, None] - np.arange(length)[None]
  seen = (age >= 0) & ((age < config.window) if slides else True)
  scores = np.where(seen[None], scores, -np.inf)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  out = np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
  return out @ get("attention", "o")


def _heads(config, get, x, name):
  """[L, heads, d] of q, k or v, with bias and norm where the model has them."""
  y = x @ get("attention", name)
  if config.qkv_bias:
    y = y + get("attention", f"{name}_bias")[None]
  y = y.reshape(len(x), -1, config.head_dim)
  if config.qk_norm and name != "v":
    y = _norm(config, y, get("attention", f"{name}_norm"))
  return y


def _turned(config, x, slides):
  """Rotary positions: pair i and i + d / 2 of a head turn together."""
  theta, scaling = config.rope_theta, config.rope_scaling
  if slides and config.rope_theta_local is not None:
    theta, scaling = config.rope_theta_local, None
  turn, factor = rope.frequencies(config.head_dim, theta, scaling)
  angles = np.arange(len(x))[:, None, None] * turn.astype(np.float64)
  half = config.head_dim // 2
  pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles) * factor
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _mlp(config, get, x):
  gate = x @ get("mlp", "gate")
  if config.activation == "silu":
    opened = gate / (1 + np.exp(-gate))
  else:  # gelu_tanh
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    opened = 0.5 * gate * (1 + np.tanh(inner))
  return (opened * (x @ get("mlp", "up"))) @ get("mlp", "down")


def _norm(config, x, weight):
  square = np.mean(x * x, axis=-1, keepdims=True)
  offset = 1.0 if config.family in _GEMMA else 0.0
  return x / np.sqrt(square + config.norm_eps) * (offset + weight)


def _capped(x, cap):
  return cap * np.tanh(x / cap) if cap else x


def _float64(leaf):
  return np.asarray(leaf).astype(np.float64)
