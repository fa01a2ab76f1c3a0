"""Multi-token prediction: a module that says a token one token earlier.

    x_j = M [norm(h_{j-1}) ; norm(embed(y_j))]
    logprob(y_{j+1}) = head(norm(block(x)_j))

h is the policy's final hidden state, so the prediction of y_t has seen h at
t - 2 and, beside it, only the token y_{t-1}. M is a matrix [2 D, D], the block
one of the policy's own family, which attends over the same row; embedding and
head are the policy's. One module, K = 1: more would each read the one before.

References:
  DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.2.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import types
from jaxrl_llm.models import api, decoder, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class MtpModule:
  """One prediction module; its parameters are no part of the model's.

  Attributes:
    trunk_gradient: share of the gradient of its log-probs that goes on into the
      policy (hidden states, embedding, head): 0 leaves it alone, 1 trains both
      jointly; or the name of a scalar in a rollout's extras that says so, and
      0 where a rollout does not have it.
    rate: learning rate of the module over the policy's.
  """

  trunk_gradient: float | str = 1.0
  rate: float = 1.0

  def __post_init__(self):
    """Raises ValueError for numbers that cannot be."""
    share = self.trunk_gradient
    if not (isinstance(share, str) or 0 <= share <= 1):
      raise ValueError(f"trunk_gradient must be in [0, 1], got {share}.")
    api.check_rate("mtp_rate", self.rate)

  def init(self, key: jax.Array, model: decoder.Decoder) -> api.Params:
    """Random float32 parameters: std fan_in^-1/2, as the model's own."""
    project_key, block_key = jax.random.split(key)
    width = model.config.width
    project = jax.random.normal(project_key, (2 * width, width))
    return {
      "mtp": {
        "hidden_norm": model.norm_weight(),
        "token_norm": model.norm_weight(),
        "project": (2 * width) ** -0.5 * project,
        "block": model.init_block(block_key),
        "final_norm": model.norm_weight(),
      }
    }

  def apply(
    self,
    params: api.Params,
    model: decoder.Decoder,
    policy: api.Params,
    tokens: Int[Array, "R L"],
    before: Float[Array, "R L D"],
    positions: Int[Array, "R L"],
    cache: api.Cache,
    share: Float[Array, ""] | float = 1.0,
  ) -> tuple[Float[Array, "R L D"], Float[Array, "V D"]]:
    """States that predict the token after each, and the head for them.

    Args:
      params: from init.
      model: the policy's.
      policy: its parameters.
      tokens: as they were fed.
      before: final hidden state of the token before each; anything on tokens
        that the cache hides.
      positions: of the tokens.
      cache: who sees whom; the first token of a row, which has no state before
        it, is to be hidden.
      share: of the gradient that the policy feels.
    """
    chex.assert_rank([tokens, before, positions], [2, 3, 2])
    params = params["mtp"]
    before = scaled_gradient(before, share)
    embedded = scaled_gradient(model.embed(policy, tokens), share)
    x = jnp.concatenate(
      [
        model.norm(before, params["hidden_norm"]),
        model.norm(embedded, params["token_norm"]),
      ],
      axis=2,
    )
    x = linear.linear(x, params["project"], dtype=model.dtype)
    x = model.apply_block(params["block"], x, positions, cache)
    x = model.norm(x, params["final_norm"]).astype(model.dtype)
    return x, scaled_gradient(model.head(policy), share)

  def share(self, rollout: types.Rollout) -> Float[Array, ""] | float:
    """trunk_gradient as a number."""
    if isinstance(self.trunk_gradient, str):
      return rollout.extras.get(self.trunk_gradient, 0.0)
    return self.trunk_gradient


def predicted(rollout: types.Rollout) -> Bool[Array, "N T"]:
  """The tokens of the mask that a module can predict.

  The first of a completion only after a prompt of two tokens or more.
  """
  later = jnp.arange(rollout.mask.shape[1])[None] > 0
  long = rollout.prompt_mask.sum(axis=1, keepdims=True) > 1
  return rollout.mask & (later | long)


def scaled_gradient(x: Array, share: Float[Array, ""] | float) -> Array:
  """x; its gradient is `share` of what it would be.

  Args:
    x: of any shape.
    share: a number or a traced scalar, a constant; at the number 0 nothing is
      computed for x.
  """
  if isinstance(share, float | int) and share in (0, 1):
    return x if share else jax.lax.stop_gradient(x)
  return _scaled(x, jnp.asarray(share))


@jax.custom_vjp
def _scaled(x, share):
  del share
  return x


def _forward(x, share):
  return x, share


def _backward(share, g):
  return g * share.astype(g.dtype), jnp.zeros_like(share)


_scaled.defvjp(_forward, _backward)
