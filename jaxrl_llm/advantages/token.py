"""Credit for single tokens: rewards on tokens, returns, whitening."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.advantages import group
from pallas_kernels import reverse_scan


def last_token_rewards(
  rewards: Float[Array, "N"], mask: Bool[Array, "N T"]
) -> Float[Array, "N T"]:
  """Puts the reward of a completion on its last own token, 0 elsewhere.

  Args:
    rewards: outcome of each completion; that of a row without tokens is lost.
    mask: true on the policy's own tokens; may have holes.
  """
  chex.assert_rank([rewards, mask], [1, 2])
  length = mask.shape[1]
  last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  here = mask & (jnp.arange(length)[None] == last[:, None])
  return jnp.where(here, rewards[:, None], 0.0)


def kl_penalized(
  token_rewards: Float[Array, "N T"],
  logprobs: Float[Array, "N T"],
  ref_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  beta: float,
) -> Float[Array, "N T"]:
  """Takes the KL to the reference out of the reward of each token.

    q_t - beta (logprobs_t - ref_logprobs_t)

  k1, whose expectation is KL(pi || ref): in the reward it is a constant, so
  that its sign and its variance do not matter as they do in a loss.

  Args:
    token_rewards: q, one a token.
    logprobs: of the policy that sampled, in nats; no gradient comes back.
    ref_logprobs: of the reference, in nats.
    mask: true on the policy's own tokens; q is kept on the others.
    beta: reward per nat (verl kl_coef, OpenRLHF kl.init_coef).

  References:
    Ziegler et al. 2019, arXiv:1909.08593.
  """
  return token_rewards - beta * _k1(logprobs, ref_logprobs, mask)


def kl_penalized_outcome(
  rewards: Float[Array, "N"],
  logprobs: Float[Array, "N T"],
  ref_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  beta: float,
) -> Float[Array, "N"]:
  """Takes the KL of the whole completion out of its reward (RLOO).

    r_i - beta sum_t m_it (logprobs_it - ref_logprobs_it)

  The sum over tokens of kl_penalized, with the reward on any one of them.

  Args:
    rewards: outcome of each completion.
    logprobs: of the policy that sampled, in nats; no gradient comes back.
    ref_logprobs: of the reference, in nats.
    mask: true on the policy's own tokens.
    beta: reward per nat (TRL beta of RLOOConfig).

  References:
    Ahmadian et al. 2024, arXiv:2402.14740.
  """
  return rewards - beta * _k1(logprobs, ref_logprobs, mask).sum(axis=1)


def discounted_returns(
  token_rewards: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  gamma: float = 1.0,
  carry: bool = False,
) -> Float[Array, "N T"]:
  """What a token and those after it earn.

    G_t = q_t + gamma G_{t+1}  where the mask is true

  A masked token, of a tool for instance, passes the return of the next one
  through unchanged: it neither earns nor takes time. The arithmetic is
  pallas_kernels.reverse_scan.

  Args:
    token_rewards: q, one a token; not looked at outside the mask.
    mask: true on the policy's own tokens; may have holes.
    gamma: discount a token, in [0, 1].
    carry: leaves on a masked token the return that passes through it (verl's
      ReMax and optimal token baseline) instead of 0.

  Returns:
    Returns in units of reward.

  Raises:
    ValueError: if gamma is outside [0, 1].
  """
  check_gamma(gamma)
  chex.assert_equal_shape([token_rewards, mask])

  return reverse_scan.discounted_returns(
    token_rewards, mask, gamma=gamma, carry=carry
  )


def moments(
  values: Float[Array, "N T"], mask: Bool[Array, "N T"], *, ddof: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Mean and variance over all tokens of the mask; long rows weigh more.

  Args:
    values: one a token.
    mask: true on tokens that count.
    ddof: the variance is divided by the tokens minus this.

  Returns:
    The mean, and the variance, which is exactly 0 for equal values; 0 and 0
    without tokens.
  """
  chex.assert_equal_shape([values, mask])
  table = group.one_group(values, mask)
  return table.mean[0, 0], group.std(table, ddof=ddof)[0, 0] ** 2


def whiten(
  values: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  ddof: int = 1,
  eps: float = 1e-8,
  variance: Literal["add", "at_least"] = "add",
) -> Float[Array, "N T"]:
  """Standardises over all tokens of the batch.

    (x - mean) / sqrt(var + eps)        variance "add"
    (x - mean) / sqrt(max(var, eps))    variance "at_least"

  verl adds and takes ddof 1, OpenRLHF and NeMo RL bound and take ddof 0.
  Equal values give exactly 0, and so does a single token.

  Args:
    values: one a token; may hold anything outside the mask.
    mask: true on tokens that count.
    ddof: the variance is divided by the tokens minus this.
    eps: keeps the division finite, in units of values squared.
    variance: how eps does so.

  Returns:
    Values of mean 0 and variance 1 over the mask, 0 outside it.

  Raises:
    ValueError: if ddof, eps or variance is not one of these.
  """
  check_whitening(ddof=ddof, eps=eps, variance=variance)
  chex.assert_equal_shape([values, mask])
  table = group.one_group(values, mask)
  var = group.std(table, ddof=ddof) ** 2
  var = var + eps if variance == "add" else jnp.maximum(var, eps)
  return (table.centred * jax.lax.rsqrt(var)).reshape(values.shape)


def check_beta(beta: float) -> None:
  """Raises ValueError unless beta is 0 or more and finite."""
  if not 0 <= beta < float("inf"):
    raise ValueError(f"beta must be 0 or more and finite, got {beta}.")


def check_gamma(gamma: float) -> None:
  """Raises ValueError unless gamma is in [0, 1]."""
  if not 0 <= gamma <= 1:
    raise ValueError(f"gamma must be in [0, 1], got {gamma}.")


def check_whitening(*, ddof: int, eps: float, variance: str) -> None:
  """Raises ValueError for what whiten cannot take."""
  if ddof not in (0, 1):
    raise ValueError(f"ddof must be 0 or 1, got {ddof}.")
  if not 0 < eps < float("inf"):
    raise ValueError(f"eps must be positive and finite, got {eps}.")
  if variance not in ("add", "at_least"):
    raise ValueError(f"variance must be add or at_least, got {variance!r}.")


def _k1(logprobs, ref_logprobs, mask) -> Float[Array, "N T"]:
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  policy = jnp.where(mask, logprobs, 0.0)
  return jax.lax.stop_gradient(policy - jnp.where(mask, ref_logprobs, 0.0))
