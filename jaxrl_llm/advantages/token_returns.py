"""Credit where a reward of its own stands on some tokens."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import group


def group_token_returns(
  rewards: Float[Array, "N"],
  token_rewards: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  scale: bool = True,
  eps: float = 1e-4,
  min_std: float = 1e-6,
) -> Float[Array, "N T"]:
  """Returns of tokens, standardised by the mean returns of completions.

    ret_it = R_i + q_it,  M_i = mean_t ret_it
    A_it   = (ret_it - mean_g M) / (std_g M + eps)

  Equals group_normalized, on every token, where q is 0. Means over the tokens
  of A_i sum to zero in each group; adding a constant to R changes nothing.

  Args:
    rewards: R, outcome of each completion.
    token_rewards: q, what stands on a token beside it.
    mask: true on the policy's own tokens; the rest may hold anything.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    scale: whether to divide.
    eps: added to the std (over G - 1), in units of reward.
    min_std: a group whose M differ less is not divided.

  Returns:
    Advantages, 0 outside the mask and on rows that do not count.

  References:
    Fan et al. 2026, arXiv:2605.29648.
  """
  chex.assert_equal_shape([token_rewards, mask])
  counted = group.counted_rows(weights, rewards)
  mask = mask & counted[:, None]
  tokens = jnp.where(mask, token_rewards, 0.0)
  mean = tokens.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
  groups = group.from_group_mean(
    jnp.where(mask.any(axis=1), rewards, 0.0) + mean,
    weights,
    group_size=group_size,
  )
  # ret - mean_g = (M - mean_g) + (q - mean_t q): exactly 0 where all is equal.
  centred = groups.centred.reshape(-1, 1) + tokens - mean[:, None]
  std = jnp.repeat(group.std(groups, ddof=1), group_size, axis=0)
  if scale:
    centred /= jnp.where(std < min_std, 1.0, std + eps)
  return jnp.where(mask, centred, 0.0)
