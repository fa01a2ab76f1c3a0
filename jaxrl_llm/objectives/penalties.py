"""Terms added to a loss, one value per token.

The estimators k1, k2 and k3 of KL(pi || ref) take d = log pi - log ref of a
token sampled from pi. k1 and k3 are unbiased as VALUES. As losses,
differentiated through d alone, k1 has zero expected gradient, k3 has that of
the other direction, KL(ref || pi), and only k2 has that of KL(pi || ref).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.objectives import ratios

PenaltyFn = Callable[[types.Scores, types.Rollout], Float[Array, "N T"]]

# exp(-d) in float32 stays finite, as in verl's low_var_kl.
_LIMIT = 20.0


class Penalty(NamedTuple):
  """A term of the loss: sum(weights * coef * term(scores, rollout)).

  Attributes:
    name: of the metric, which is the term without its coefficient.
    coef: multiplies it; a name reads a scalar of rollout.extras, for a
      coefficient that a transform adapts.
    term: (scores, rollout) -> [N, T], 0 on padding.
  """

  name: str
  coef: float | str
  term: PenaltyFn


def k1(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
  """d: unbiased, of either sign; zero expected gradient as a loss."""
  return log_ratio


def k2(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
  """d^2 / 2: biased in value, exact in gradient on-policy."""
  return 0.5 * log_ratio**2


def k3(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
  """exp(-d) + d - 1: unbiased, non-negative, 0 only at d = 0."""
  return jnp.expm1(-jnp.maximum(log_ratio, -_LIMIT)) + log_ratio


def reference_kl(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """KL(pi || ref) per token with the exact gradient.

    r = exp(logprobs - old_logprobs),  d = logprobs - ref_logprobs
    value = r * k3(d),  d value / d logprobs = r * d

  This is r * k3(d) with r not detached, as in DeepSeek-V3.2 and TRL's
  use_bias_correction_kl: its gradient r * (k3(d) + 1 - exp(-d)) is r * d. Here
  r * d is used directly, so that nothing overflows where pi << ref. Exact also
  after several updates on one rollout; at r = 1 it is k3 with k2's gradient.

  Args:
    scores: of the policy being trained.
    rollout: with ref_logprobs.

  Returns:
    Nats per token, 0 outside the mask.

  References:
    Schulman 2020, "Approximating KL divergence"; DeepSeek-AI 2025,
    arXiv:2512.02556.
  """
  log_ratio = ratios.token_log_ratio(
    scores.logprobs, rollout.old_logprobs, rollout.mask
  )
  d = _log_ratio_to_reference(scores, rollout)
  ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
  constant = jax.lax.stop_gradient(d)  # the gradient is written out below
  return ratio * (k3(constant) + constant * (d - constant))


def reference_k3(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """The term of the GRPO paper: k3(d) per token, differentiated through d.

    exp(-d) + d - 1,  d = logprobs - ref_logprobs

  Its expected gradient is that of KL(ref || pi); prefer reference_kl.

  Args:
    scores: of the policy being trained.
    rollout: with ref_logprobs.

  Returns:
    Nats per token, 0 outside the mask.

  References:
    Shao et al. 2024, arXiv:2402.03300, eq. 4.
  """
  return k3(_log_ratio_to_reference(scores, rollout))


def negative_entropy(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """Minus the entropy of each token's distribution: a bonus when minimised.

  Args:
    scores: with entropy.
    rollout: gives the mask.

  Returns:
    Nats per token, not positive, 0 outside the mask.
  """
  if scores.entropy is None:
    raise ValueError(
      "scores.entropy is None: the method must name 'entropy' in `needs`."
    )
  return -jnp.where(rollout.mask, scores.entropy, 0.0)


def _log_ratio_to_reference(scores, rollout) -> Float[Array, "N T"]:
  """log pi - log ref, 0 on padding; not bounded."""
  if rollout.ref_logprobs is None:
    raise ValueError(
      "rollout.ref_logprobs is None: the method must name 'ref_logprobs' in"
      " `needs`."
    )
  chex.assert_equal_shape([scores.logprobs, rollout.ref_logprobs])
  return ratios.token_log_ratio(
    scores.logprobs, rollout.ref_logprobs, rollout.mask, limit=jnp.inf
  )
