"""A baseline for each position: the one of least variance (OTB)."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import token


def optimal_token_baseline(
  token_rewards: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  sum_pi_squared: Float[Array, "N T"],
  rollout_is: Float[Array, "N T"] | None = None,
  *,
  group_size: int,
  zero_tail: bool = False,
  eps: float = 1e-8,
) -> Float[Array, "N T"]:
  """Subtracts the return of the group, weighted by score energy (verl).

    w_t = (1 - 2 p_t + sum_v p_v^2) rho_t^2     W_t = sum_{s <= t} m_s w_s
    B_t = sum_i m_it W_it G_it / (sum_i m_it W_it + eps)
    A_it = m_it (G_it - B_t)

  p is the probability of the token and w the squared norm of the gradient of
  its log-prob in the logits: rows that moved far weigh more. Rows are compared
  position by position.

  Summed from the lowest return of the position. Where all returns of a
  position are equal, A is exactly 0 (verl: G_it eps / (W + eps)).

  Args:
    token_rewards: one a token; groups contiguous.
    mask: true on the policy's own tokens; false in rows that are dropped.
    old_logprobs: of the policy that sampled, in nats.
    sum_pi_squared: sum over the vocabulary of the squared probabilities.
    rollout_is: rho, weights of a rollout correction; None: 1.
    group_size: G; at least 2, must divide N.
    zero_tail: B = 0 for the one longest row of a group at positions from the
      second longest length on (verl handle_zero_tail, there True). Alone
      there, a row is else its own baseline and its tail learns nothing; but
      then equal rewards no longer give 0, so it is off here.
    eps: keeps the division finite.

  Returns:
    Advantages in units of reward, 0 outside the mask.

  Raises:
    ValueError: if group_size < 2.

  References:
    Equations as in verl's core_algos; no paper is named there.
  """
  _check_group(group_size)
  chex.assert_equal_shape([token_rewards, mask, old_logprobs, sum_pi_squared])
  chex.assert_is_divisible(mask.shape[0], group_size)
  returns = token.discounted_returns(token_rewards, mask)
  energy = _energy(mask, old_logprobs, sum_pi_squared, rollout_is)
  shape = (-1, group_size, mask.shape[1])
  own, returns = mask.reshape(shape), returns.reshape(shape)
  energy = jnp.where(own, energy.reshape(shape), 0.0)
  low = jnp.where(own, returns, jnp.inf).min(axis=1, keepdims=True)
  high = jnp.where(own, returns, -jnp.inf).max(axis=1, keepdims=True)
  low = jnp.where(own.any(axis=1, keepdims=True), low, 0.0)
  above = jnp.where(own, returns - low, 0.0)
  total = energy.sum(axis=1, keepdims=True) + eps
  baseline = (energy * above).sum(axis=1, keepdims=True) / total
  advantages = above - baseline + low * eps / total
  advantages = jnp.where(own & (high > low), advantages, 0.0)
  if zero_tail:
    advantages = jnp.where(own & _alone(own), returns, advantages)
  return advantages.reshape(mask.shape)


def tir_optimal_token_baseline(
  token_rewards: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  sum_pi_squared: Float[Array, "N T"],
  rollout_is: Float[Array, "N T"] | None = None,
  *,
  group_size: int,
  zero_tail: bool = False,
  eps: float = 1e-8,
) -> Float[Array, "N T"]:
  """The same, comparing the k-th own tokens of rows instead of positions.

  For rollouts with tool tokens between a policy's own. Equals
  optimal_token_baseline when the masks have no holes.

  Args:
    token_rewards: one a token; groups contiguous.
    mask: true on the policy's own tokens; false in rows that are dropped.
    old_logprobs: of the policy that sampled, in nats.
    sum_pi_squared: sum over the vocabulary of the squared probabilities.
    rollout_is: rho, weights of a rollout correction; None: 1.
    group_size: G; at least 2, must divide N.
    zero_tail: see optimal_token_baseline; lengths are in own tokens.
    eps: keeps the division finite.

  Returns:
    Advantages in units of reward, 0 outside the mask.

  Raises:
    ValueError: if group_size < 2.
  """
  chex.assert_equal_shape([token_rewards, mask, old_logprobs, sum_pi_squared])
  order = jnp.argsort(~mask, axis=1, stable=True)
  pack = lambda x: jnp.take_along_axis(x, order, axis=1)  # noqa: E731
  packed = optimal_token_baseline(
    pack(token_rewards),
    pack(mask),
    pack(old_logprobs),
    pack(sum_pi_squared),
    None if rollout_is is None else pack(rollout_is),
    group_size=group_size,
    zero_tail=zero_tail,
    eps=eps,
  )
  place = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  found = jnp.take_along_axis(packed, place, axis=1)
  return jnp.where(mask, found, 0.0)


def _energy(mask, logprobs, sum_pi_squared, rollout_is) -> Float[Array, "N T"]:
  """W: energy of the path up to each token."""
  p = jnp.exp(jnp.where(mask, logprobs, 0.0))
  own = 1.0 - 2.0 * p + jnp.where(mask, sum_pi_squared, 0.0)
  if rollout_is is not None:
    own *= jnp.where(mask, rollout_is, 0.0) ** 2
  return jnp.cumsum(jnp.where(mask, own, 0.0), axis=1)


def _alone(own: Bool[Array, "B G T"]) -> Bool[Array, "B G T"]:
  """Positions from the second longest length on, in the one longest row."""
  lengths = own.sum(axis=2)
  ordered = jnp.sort(lengths, axis=1)
  second = ordered[:, -2:-1]
  longest = (lengths == ordered[:, -1:]) & (lengths > second)
  places = jnp.arange(own.shape[2])[None, None]
  return longest[:, :, None] & (places >= second[:, :, None])


def _check_group(group_size: int) -> None:
  if group_size < 2:
    raise ValueError(
      f"group_size must be at least 2, got {group_size}: a completion"
      " without siblings has nothing to be compared with."
    )
