"""Embedding, one scan over the blocks, final norm: the same for all families.

The blocks' parameters have a leading axis [depth] on every leaf, so tracing
and compiling cost one block, however deep the model.
"""

import dataclasses

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxrl_llm.distributed import sharding
from jaxrl_llm.models import api, attention_maps, embedding, layers, rope
from jaxrl_llm.models import cache as caches

_POLICIES = {
  "dots": jax.checkpoint_policies.save_only_these_names(layers.PRODUCT),
  "full": jax.checkpoint_policies.nothing_saveable,
}
REMAT = ("none", *_POLICIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """A LanguageModel (see api.py) made of one family's block.

  Attributes:
    config: its shape.
    dtype: of the factors of products, of keys and values, and of the hidden
      states that come out. The stream between the blocks is float32.
    block: Linen module called as (x, turns, window, cache, layer).
    remat: what the backward pass computes anew: "none"; "dots", all but
      matrix products; "full", everything inside a block.
    embed_scale: multiplies embeddings; None means 1.
    norm_offset: `offset` of the final norm.
  """

  config: api.ModelConfig
  dtype: jax.typing.DTypeLike
  block: nn.Module
  remat: str
  embed_scale: float | None = None
  norm_offset: float = 0.0

  def init(self, key: jax.Array) -> api.Params:
    """Random float32 parameters: std fan_in^-1/2, embedding and head 0.02."""
    return jax.jit(self._random)(key)

  def apply(self, params, tokens, positions, cache):
    """See api.LanguageModel; the hidden states have the dtype `dtype`."""
    x, cache, _ = self._run(params, tokens, positions, cache)
    return self.normed(params, x), cache

  def tapped(self, params, tokens, positions, cache, *, after):
    """See api.LanguageModel; the streams are float32."""
    depth = self.config.depth
    if not all(0 <= count <= depth for count in after):
      raise ValueError(f"after must be in 0 to {depth} blocks, got {after}.")
    inside = tuple(sorted({count for count in after if 0 < count < depth}))
    x, _, seen = self._run(params, tokens, positions, cache, inside)
    streams = dict(zip(inside, seen, strict=True)) | {depth: x}
    if 0 in after:
      streams[0] = self.embed(params, tokens)
    return self.normed(params, x), tuple(streams[count] for count in after)

  def normed(self, params, stream):
    """See api.LanguageModel."""
    return self.norm(stream, params["final_norm"]).astype(self.dtype)

  def asked(self, params, stream, positions, *, block):
    """See api.LanguageModel."""
    weights = jax.tree.map(lambda w: w[block], params["layers"])
    turns, local = self._turns(positions)
    windows, window = self._slides(), None
    if windows is not None:
      window = api.Window(self.config.window, windows[block])
      if local is not None and self.config.layer_windows[block]:
        turns = local
    listener = attention_maps.Listener()
    args = stream, turns, window, listener, None
    return self.block.apply({"params": weights}, *args)[1]

  def _run(self, params, tokens, positions, cache, taps=()):
    """The last stream, the cache, and the streams before the blocks `taps`."""
    chex.assert_rank([tokens, positions], 2)
    chex.assert_equal_shape([tokens, positions])
    slides = self._slides()
    turns, local = self._turns(positions)

    def run(carry, scanned):
      x, seen = carry
      weights, layer, slides, number = scanned
      # Each tap's buffer is written where its block comes, else passed on.
      seen = tuple(
        jnp.where(number == tap, x, old)
        for tap, old in zip(taps, seen, strict=True)
      )
      window, mine = None, turns
      if slides is not None:
        window = api.Window(self.config.window, slides)
        if local is not None:
          mine = jax.tree.map(
            lambda a, b: jnp.where(slides, a, b), local, turns
          )
      x, kept = block(weights, x, mine, window, cache, layer)
      # What the backward pass keeps of a block: cut over all devices.
      return (sharding.constrain(x, "rows", "length", None), seen), kept

    block = self._block()
    number = jnp.arange(self.config.depth) if taps else None
    scanned = params["layers"], cache.layers(), slides, number
    x = self.embed(params, tokens)
    seen = tuple(jnp.zeros_like(x) for _ in taps)
    (x, seen), kept = jax.lax.scan(run, (x, seen), scanned)
    return x, cache.updated(kept), seen

  def head(self, params):
    """The output matrix [V, D]; the embedding when tied."""
    return params["embed"] if self.config.tied else params["head"]

  def embed(self, params, tokens):
    """What the first block is given: [R, L, D], float32."""
    x = embedding.lookup(params["embed"], tokens).astype(self.dtype)
    if self.embed_scale is not None:
      # Rounded to the dtype before the product, as the models were trained.
      x = x * jnp.asarray(self.embed_scale, self.dtype)
    return sharding.constrain(x.astype(jnp.float32), "rows", "length", None)

  def norm(self, x, weight):
    """RMSNorm as the family has it, float32."""
    eps, offset = self.config.norm_eps, self.norm_offset
    return layers.rms_norm(x, weight, eps=eps, offset=offset)

  def norm_weight(self):
    """The weight of a norm that does no more than scale."""
    return jnp.full((self.config.width,), 1.0 - self.norm_offset, jnp.float32)

  def init_block(self, key):
    """Random float32 parameters of one block."""
    half = self.config.head_dim // 2
    turns = (jnp.ones((1, 1, half)), jnp.zeros((1, 1, half)))
    x = jnp.zeros((1, 1, self.config.width))
    past = caches.Causal(jnp.ones((1, 1), bool))
    return self.block.init(key, x, turns, None, past, None)["params"]

  def apply_block(self, weights, x, positions, cache):
    """One block with weights of its own, which sees all that the cache allows.

    Args:
      weights: from init_block.
      x: [R, L, D], float32.
      positions: [R, L].
      cache: that keeps nothing.
    """
    turns, _ = self._turns(positions)
    x, _ = self._block()(weights, x, turns, None, cache, None)
    return sharding.constrain(x, "rows", "length", None)

  def _random(self, key):
    config = self.config
    shape = (config.vocab_size, config.width)
    embed_key, block_key, head_key = jax.random.split(key, 3)
    params = {
      "embed": 0.02 * jax.random.normal(embed_key, shape),
      "layers": jax.vmap(self.init_block)(
        jax.random.split(block_key, config.depth)
      ),
      "final_norm": self.norm_weight(),
    }
    if not config.tied:
      params["head"] = 0.02 * jax.random.normal(head_key, shape)
    return params

  def _slides(self):
    """[depth] bool, or None when no layer slides."""
    windows = self.config.layer_windows
    if self.config.window is None or not any(windows):
      return None
    return jnp.asarray(windows)

  def _turns(self, positions):
    """Rotary tables of global layers, and of sliding ones if they differ."""
    config = self.config
    turns = rope.tables(
      positions, config.head_dim, config.rope_theta, config.rope_scaling
    )
    if config.rope_theta_local is None:
      return turns, None
    local = rope.tables(positions, config.head_dim, config.rope_theta_local)
    return turns, local

  def _block(self):
    def block(weights, *args):
      return self.block.apply({"params": weights}, *args)

    if self.remat == "none":
      return block
    return jax.checkpoint(
      block, policy=_POLICIES[self.remat], prevent_cse=False
    )
