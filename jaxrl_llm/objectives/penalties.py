"""Terms added to a loss, one value per token: KL to the reference, entropy.

The estimators themselves, what each is in value and in gradient, and which of
them are traps, are in objectives.kl; here they meet scores and rollouts.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.objectives import kl, ratios

PenaltyFn = Callable[[types.Scores, types.Rollout], Float[Array, "N T"]]


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


def reference_kl(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """KL(pi || ref) per token, exact in value and gradient: kl.exact.

    r = exp(logprobs - old_logprobs),  d = logprobs - ref_logprobs
    value = r * k3(d),  d value / d logprobs = r * d

  Args:
    scores: of the policy being trained.
    rollout: with ref_logprobs.

  Returns:
    Nats per token, 0 outside the mask.

  References:
    DeepSeek-AI 2025, arXiv:2512.02556, section 3.1.
  """
  log_ratio = ratios.token_log_ratio(
    scores.logprobs, rollout.old_logprobs, rollout.mask
  )
  return kl.exact(log_ratio_to_reference(scores, rollout), log_ratio)


def estimated(
  estimator: Callable, *, gradient: Callable | None = None
) -> PenaltyFn:
  """An estimator of objectives.kl as a term, differentiated through d.

  Args:
    estimator: d -> nats, 0 at d = 0; gives the value.
    gradient: the same, for the gradient; None takes the estimator's own.
  """

  def term(scores, rollout):
    d = log_ratio_to_reference(scores, rollout)
    if gradient is None:
      return estimator(d)
    return kl.straight_through(estimator(d), gradient(d))

  return term


def weighed(
  estimator: Callable,
  *,
  ratio: Callable = ratios.token_log_ratio,
  bound: float = float("inf"),
) -> PenaltyFn:
  """An estimator times pi / pi_old, both differentiated: kl.times_ratio.

  Args:
    estimator: d -> nats, 0 at d = 0.
    ratio: (logprobs, old_logprobs, mask) -> log-ratio [N, T] in nats.
    bound: of the product, in nats; no gradient beyond.
  """

  def term(scores, rollout):
    d = log_ratio_to_reference(scores, rollout)
    log_ratio = ratio(scores.logprobs, rollout.old_logprobs, rollout.mask)
    return kl.bounded(kl.times_ratio(estimator(d), log_ratio), bound=bound)

  return term


# Estimators by the names that configs choose them by; "+" is verl's sign for
# the gradient of k2, "ratio_" weighs by pi / pi_old. verl also writes kl for
# k1 and mse for k2. Value and gradient of each: the head of objectives.kl.
REFERENCE_KL: dict[str, PenaltyFn] = {
  "exact": reference_kl,
  "k3": estimated(kl.k3),
  "k1": estimated(kl.k1),
  "k2": estimated(kl.k2),
  "abs": estimated(kl.absolute),
  "low_var_kl": estimated(kl.low_var_kl),
  "k1+": estimated(kl.k1, gradient=kl.k2),
  "k3+": estimated(kl.k3, gradient=kl.k2),
  "abs+": estimated(kl.absolute, gradient=kl.k2),
  "low_var_kl+": estimated(kl.low_var_kl, gradient=kl.k2),
  "ratio_k1": weighed(kl.k1),
  "ratio_k2": weighed(kl.k2),
  "ratio_k3": weighed(kl.k3),
  "ratio_abs": weighed(kl.absolute),
  "ratio_low_var_kl": weighed(kl.k3, bound=10.0),
}


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


def negative_logprob(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """Minus the log-prob of the sampled token: its mean estimates the entropy.

  As a loss it raises the log-prob of whatever was sampled; on-policy that has
  no gradient on average, off-policy it draws the policy to the old one.

  Args:
    scores: of the policy being trained.
    rollout: gives the mask.

  Returns:
    Nats per token, not negative, 0 outside the mask.
  """
  return -jnp.where(rollout.mask, scores.logprobs, 0.0)


def negative_mean_entropy(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """negative_entropy as a mean over tokens of its own, whatever the weighting.

  Args:
    scores: with entropy.
    rollout: with extras["entropy_factor"], by transforms.entropy_mask's
      bonus_factor; times the weights of the loss it sums to a mean.

  Returns:
    Nats per token, not positive, 0 outside the mask and those tokens.
  """
  factor = jnp.where(rollout.mask, rollout.extras["entropy_factor"], 0.0)
  return factor * negative_entropy(scores, rollout)


def log_ratio_to_reference(
  scores: types.Scores, rollout: types.Rollout
) -> Float[Array, "N T"]:
  """d = log pi - log ref in nats, 0 on padding; not bounded.

  Args:
    scores: of the policy being trained; the gradient flows through them.
    rollout: with ref_logprobs.

  Raises:
    ValueError: if there are none.
  """
  if rollout.ref_logprobs is None:
    raise ValueError(
      "rollout.ref_logprobs is None: the method must name 'ref_logprobs' in"
      " `needs`."
    )
  chex.assert_equal_shape([scores.logprobs, rollout.ref_logprobs])
  return ratios.token_log_ratio(
    scores.logprobs, rollout.ref_logprobs, rollout.mask, limit=jnp.inf
  )
