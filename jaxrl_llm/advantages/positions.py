"""Rewards of tokens, compared with those of siblings at the same position."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group

BASES = ("code", "paper")


def decoupled_rewards(
  rewards: Float[Array, "N"],
  starts: Int[Array, "N"],
  ends: Int[Array, "N"],
  mask: Bool[Array, "N T"],
  *,
  beta_len: float = 0.1,
  max_length: int | None = None,
  redundant_base: str = "code",
) -> Float[Array, "N T"]:
  """More for every token of a right row but those that are redundant (DECS).

    R_it = r_i (1 + beta_len)                over the whole row of T tokens
    R_it = r_i + beta_len (1 - L_i / L_max)  starts_i <= t < ends_i ("code")
    R_it = r_i - beta_len L_i / L_max        the same ("paper")

  with L_i the tokens of the row. Padding has what its row has: position by
  position a short completion is compared as if it had gone on well.

  Args:
    rewards: r, outcome of each completion.
    starts: first redundant token of each row, negative for none.
    ends: behind the last one.
    mask: true on the policy's own tokens.
    beta_len: what there is to lose, in units of reward; 0 or more.
    max_length: L_max, tokens; None takes T.
    redundant_base: which of the two; they differ by beta_len.

  Returns:
    Rewards, also outside the mask. A row with a reward of 0 or less has no
    redundant tokens.

  Raises:
    ValueError: for a bad beta_len, max_length or redundant_base.

  References:
    Jiang et al. 2025, arXiv:2509.25827.
  """
  check_decoupled(beta_len, max_length, redundant_base)
  chex.assert_equal_shape([rewards, starts, ends])
  length = mask.shape[1] if max_length is None else max_length
  gone = beta_len * (mask.sum(axis=1) / length)
  base = beta_len if redundant_base == "code" else 0.0
  token = jnp.arange(mask.shape[1])[None]
  redundant = (token >= starts[:, None]) & (token < ends[:, None])
  redundant &= ((starts >= 0) & (rewards > 0))[:, None]
  full = rewards * (1.0 + beta_len)
  return jnp.where(redundant, (rewards + base - gone)[:, None], full[:, None])


def position_normalized(
  token_rewards: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  eps: float = 1e-6,
) -> Float[Array, "N T"]:
  """Standardises each position over the rows of its group, padded ones too.

    A_it = m_it (R_it - mean_g R_.t) / (std_g R_.t + eps)

  with the std over G - 1. Equals group_normalized where a row's tokens are all
  worth the same. Before masking each position sums to zero over a group. A
  group of one has mean 0 and std 1.

  Args:
    token_rewards: R, on every token of the N rows.
    mask: true on the policy's own tokens; A is 0 elsewhere.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    eps: added to the std, in units of reward.

  References:
    Jiang et al. 2025, arXiv:2509.25827.
  """
  chex.assert_equal_shape([token_rewards, mask])
  counted = group.counted_rows(weights, token_rewards[:, 0])
  if group_size == 1:
    alone = token_rewards / (1.0 + eps)
    return jnp.where(mask & counted[:, None], alone, 0.0)
  length = mask.shape[1]
  normalized = group.group_normalized(
    token_rewards.T.reshape(-1),  # groups of one position side by side
    jnp.tile(counted.astype(jnp.float32), length),
    group_size=group_size,
    eps=eps,
  )
  return jnp.where(mask, normalized.reshape(length, -1).T, 0.0)


def check_decoupled(
  beta_len: float, max_length: int | None, redundant_base: str
) -> None:
  """Raises ValueError for what decoupled_rewards cannot take."""
  if not 0 <= beta_len < float("inf"):
    raise ValueError(f"beta_len must be 0 or more and finite, got {beta_len}.")
  if max_length is not None and max_length < 1:
    raise ValueError(f"max_length must be at least 1 token, got {max_length}.")
  if redundant_base not in BASES:
    raise ValueError(
      f"redundant_base must be {' or '.join(BASES)}; got {redundant_base!r}."
    )
