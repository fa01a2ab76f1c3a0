"""Credit from a critic: generalised advantage estimation."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import token
from pallas_kernels import reverse_scan


class Gae(NamedTuple):
  """What estimation gives; both are constants for the loss.

  Attributes:
    advantages: [N, T] credit in units of reward.
    returns: [N, T] what the critic should have said.
  """

  advantages: Float[Array, "N T"]
  returns: Float[Array, "N T"]


def generalized_advantages(
  token_rewards: Float[Array, "N T"],
  values: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  gamma: float = 1.0,
  lam: float = 1.0,
  carry: bool = False,
) -> Gae:
  """Discounted sum of the critic's surprises, and its targets (GAE).

    delta_t = q_t + gamma * v_{t+1} - v_t
    A_t = delta_t + gamma * lam * A_{t+1}
    returns_t = A_t + v_t

  where t + 1 is the next token of the mask and what follows the last one is 0.
  A masked token, of a tool for instance, takes no time: v and A of the token
  behind it pass through to the one before. A reward that stands on it is lost,
  so the outcome belongs on the last token of the mask
  (token.last_token_rewards).

  With lam = 1 returns are the discounted rewards to go and A_t is those less
  v_t; with lam = 0 A_t is delta_t. The arithmetic is
  pallas_kernels.reverse_scan.

  Args:
    token_rewards: q, one a token; not looked at outside the mask.
    values: v, the critic's before the step; no gradient comes back.
    mask: true on the policy's own tokens; may have holes.
    gamma: discount a token, in [0, 1].
    lam: 1 trusts the rewards alone (no bias of the critic), 0 the critic's
      value of the next token (least variance).
    carry: leaves on a masked token the advantage that passes through it, and
      that plus its value as its return (verl), instead of 0.

  Returns:
    Advantages, not whitened, and returns.

  Raises:
    ValueError: if gamma or lam is outside [0, 1].

  References:
    Schulman et al. 2016, arXiv:1506.02438, eq. 16; verl, core_algos.py,
    compute_gae_advantage_return.
  """
  check_discounts(gamma, lam)
  chex.assert_rank(mask, 2)
  chex.assert_equal_shape([token_rewards, values, mask])

  estimate = reverse_scan.gae(
    *(token_rewards, values, mask), gamma=gamma, lam=lam, carry=carry
  )
  return Gae(*estimate)


def explained_variance(
  values: Float[Array, "N T"],
  returns: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
) -> Float[Array, ""]:
  """Share of the variance of returns that the critic foresaw.

    1 - var(returns - values) / var(returns)

  1 for a perfect critic, 0 for a constant one, negative for one that is worse
  than a constant; 0 where all returns are equal.

  Args:
    values: the critic's, before the step.
    returns: its targets.
    mask: true on tokens that count; the rest may hold anything.
  """
  residual = jnp.where(mask, returns, 0.0) - jnp.where(mask, values, 0.0)
  _, left = token.moments(residual, mask, ddof=0)
  _, whole = token.moments(returns, mask, ddof=0)
  varied = whole > 0
  return jnp.where(varied, 1.0 - left / jnp.where(varied, whole, 1.0), 0.0)


def check_discounts(gamma: float, lam: float) -> None:
  """Raises ValueError unless gamma and lam are in [0, 1]."""
  token.check_gamma(gamma)
  if not 0 <= lam <= 1:
    raise ValueError(
      f"lam must be in [0, 1], got {lam}: 1 takes the rewards to go, 0 the"
      " critic's value of the next token."
    )
