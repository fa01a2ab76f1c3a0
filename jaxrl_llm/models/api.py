"""What the rest of the house knows of a language model.

A model is three pure functions over a nested dict of arrays. Hidden states
come out and the caller applies the head, so [N, T, V] need never exist. The
cache is an argument and a result, and it is the cache that attends: prefill,
packed training rows and one-token decoding differ in nothing else.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]

# A window that no context reaches.
_GLOBAL = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Stretches rotary positions beyond the trained context.

  Attributes:
    kind: "linear", "llama3" or "yarn".
    factor: how much longer the context becomes.
    original_positions: context length of pretraining, in tokens.
    low_freq_factor: llama3 only.
    high_freq_factor: llama3 only.
    beta_fast: yarn only.
    beta_slow: yarn only.
    attention_factor: yarn only; None computes it from `factor`.
  """

  kind: str
  factor: float
  original_positions: int = 8192
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The shape of a decoder. Field names follow the letters of types.py.

  Attributes:
    family: "llama", "mistral", "qwen2", "qwen3", "gemma2" or "gemma3".
    vocab_size: V, rows of the embedding.
    width: D.
    depth: number of blocks.
    heads: query heads.
    kv_heads: key and value heads; divides `heads`.
    head_dim: width of one head.
    mlp_width: width of the gated MLP.
    activation: "silu" or "gelu_tanh".
    norm_eps: added to the mean square in RMSNorm.
    tied: the head is the embedding.
    rope_theta: base of the rotary frequencies (global layers).
    rope_theta_local: base in sliding-window layers; None means `rope_theta`.
    rope_scaling: applies to global layers.
    qkv_bias: adds biases to q, k and v (Qwen2).
    qk_norm: RMSNorm on each head's q and k (Qwen3, Gemma 3).
    window: width in tokens of sliding-window layers; None means none.
    layer_windows: for each layer, True if it slides; empty means none does.
    attention_softcap: cap * tanh(score / cap) on attention scores.
    final_softcap: the same on logits.
    query_scale: multiplies q k^T; None means head_dim ** -0.5.
    max_positions: longest context the weights are made for, in tokens.
  """

  family: str
  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  activation: str = "silu"
  norm_eps: float = 1e-5
  tied: bool = False
  rope_theta: float = 10_000.0
  rope_theta_local: float | None = None
  rope_scaling: RopeScaling | None = None
  qkv_bias: bool = False
  qk_norm: bool = False
  window: int | None = None
  layer_windows: tuple[bool, ...] = ()
  attention_softcap: float | None = None
  final_softcap: float | None = None
  query_scale: float | None = None
  max_positions: int = 8192


@struct.dataclass
class Window:
  """How far back the tokens of one layer see.

  Attributes:
    width: places, the token's own included.
    here: whether this layer slides; None: all layers do.
  """

  width: int = struct.field(pytree_node=False)
  here: Bool[Array, ""] | None = None

  def tokens(self) -> Int[Array, ""] | int:
    """The width; in a layer that does not slide, more than any context has."""
    if self.here is None:
      return self.width
    return jnp.where(self.here, self.width, _GLOBAL)


@struct.dataclass
class Asked:
  """What one block attends with.

  Attributes:
    q: [R, L, H, d] queries, rotary positions applied.
    k: [R, L, K, d] keys likewise.
    scale, softcap, window: of Cache.attend.
  """

  q: Float[Array, "R L H d"]
  k: Float[Array, "R L K d"]
  scale: float = struct.field(pytree_node=False)
  softcap: float | None = struct.field(pytree_node=False)
  window: Window | None


class PlainRows(NamedTuple):
  """The tokens of a cache as rows in which each attends to its own past.

  Attributes:
    lay: [R, L, ...] of what was fed -> [r, l, ...], neighbours side by side.
    segments: [r, l] ids of sequences from 1, 0 on padding.
    first: place from which on tokens are of interest.
    back: [r, l - first] -> [R, L], 0 on tokens that are of none.
  """

  lay: Callable[[Array], Array]
  segments: Int[Array, "r l"]
  first: int
  back: Callable[[Array], Array]


@runtime_checkable
class Cache(Protocol):
  """Keys and values of the past, and the rule by which tokens attend.

  The implementations are in models/cache.py and models/packed.py; a model
  file only calls these three.
  """

  def layers(self) -> Any:
    """A pytree with leading axis [depth], scanned along with the blocks."""

  def attend(
    self,
    layer: Any,
    q: Float[Array, "R L H d"],
    k: Float[Array, "R L K d"],
    v: Float[Array, "R L K d"],
    *,
    scale: float,
    softcap: float | None = None,
    window: Window | None = None,
  ) -> tuple[Float[Array, "R L H d"], Any]:
    """Attends inside one block; returns the output and what to keep of k, v.

    `layer` is this block's slice of layers(). `window` is None if no layer of
    the model slides.
    """

  def updated(self, kept: Any) -> "Cache":
    """The cache after the call; `kept` has leading axis [depth]."""


@runtime_checkable
class Head(Protocol):
  """Learnt beside a policy, from what its forward finds.

  Its parameters are no part of the model's. How it is applied depends on what
  it predicts: training/score.py knows of value_head.py and mtp.py.

  Attributes:
    rate: learning rate over the policy's.
  """

  rate: float

  def init(self, key: jax.Array, model: "LanguageModel") -> Params:
    """Its first parameters, float32."""


def check_rate(name: str, rate: float) -> None:
  """Raises ValueError unless a head's learning rate is positive and finite."""
  if not 0 < rate < float("inf"):
    raise ValueError(f"{name} must be positive and finite, got {rate}.")


@runtime_checkable
class LanguageModel(Protocol):
  """A decoder as pure functions.

  Attributes:
    config: its shape, static.
    dtype: dtype of the factors of matrix products (sums are float32).
  """

  config: ModelConfig
  dtype: jax.typing.DTypeLike

  def init(self, key: jax.Array) -> Params:
    """Random float32 parameters."""

  def apply(
    self,
    params: Params,
    tokens: Int[Array, "R L"],
    positions: Int[Array, "R L"],
    cache: Cache,
  ) -> tuple[Float[Array, "R L D"], Cache]:
    """Final-normed hidden states, ready for the head."""

  def tapped(
    self,
    params: Params,
    tokens: Int[Array, "R L"],
    positions: Int[Array, "R L"],
    cache: Cache,
    *,
    after: tuple[int, ...],
  ) -> tuple[Float[Array, "R L D"], tuple[Float[Array, "R L D"], ...]]:
    """As apply, and the stream after so many blocks, for each of `after`."""

  def normed(
    self, params: Params, stream: Float[Array, "R L D"]
  ) -> Float[Array, "R L D"]:
    """The final norm of a stream: hidden states, ready for the head."""

  def asked(
    self,
    params: Params,
    stream: Float[Array, "R L D"],
    positions: Int[Array, "R L"],
    *,
    block: int,
  ) -> Asked:
    """What a block attends with, of the stream before it; from 0."""

  def head(self, params: Params) -> Float[Array, "V D"]:
    """The output matrix; the embedding when tied."""
