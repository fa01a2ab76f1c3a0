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
from jaxrl_llm.models import api, embedding, layers, rope
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
    chex.assert_rank([tokens, positions], 2)
    chex.assert_equal_shape([tokens, positions])
    slides = self._slides()
    turns, local = self._turns(positions)

    def run(x, scanned):
      weights, layer, slides = scanned
      window, mine = None, turns
      if slides is not None:
        window = api.Window(self.config.window, slides)
        if local is not None:
          mine = jax.tree.map(
            lambda a, b: jnp.where(slides, a, b), local, turns
          )
      x, kept = block(weights, x, mine, window, cache, layer)
      # What the backward pass keeps of a block: cut over all devices.
      return sharding.constrain(x, "rows", "length", None), kept

    block = self._block()
    scanned = params["layers"], cache.layers(), slides
    x, kept = jax.lax.scan(run, self.embed(params, tokens), scanned)
    x = self.norm(x, params["final_norm"])
    return x.astype(self.dtype), cache.updated(kept)

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
