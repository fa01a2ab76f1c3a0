"""Losses that imitate given answers: cross-entropy, of all tokens or of some.

What compares the tokens of a whole optimizer batch (which are left out, what
a mean is divided by) is found before the batch is cut, by `select` and
`means`; the objectives are sums that add up over its pieces.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import types
from jaxrl_llm.objectives import ranks


class Selection(NamedTuple):
  """Tokens singled out of a batch; all [N, T] bool, constants.

  Attributes:
    kl: M_K, those of largest KL to the reference.
    entropy: M_H, those of largest entropy.
    drop: those whose answers are not imitated.
  """

  kl: Bool[Array, "N T"]
  entropy: Bool[Array, "N T"]
  drop: Bool[Array, "N T"]


def cross_entropy(
  scores: types.Scores,
  rollout: types.Rollout,
  advantages: Float[Array, "N T"],
  weights: Float[Array, "N T"],
) -> tuple[Float[Array, ""], types.Metrics]:
  """The objective of plain SFT.

    loss = -sum_it w_it logprobs_it

  Args:
    scores: of the policy being trained.
    rollout: its completions are the answers.
    advantages: not read.
    weights: of a weighting.

  Returns:
    The sum, and metrics: loss, cross_entropy (nats), entropy when it was
    scored, token_weight.
  """
  del advantages
  counted = rollout.mask & (weights != 0)
  loss = _sum(weights, -scores.logprobs, counted)
  return loss, _metrics(scores, counted, weights, loss)


def select(
  entropy: Float[Array, "N T"],
  kl: Float[Array, "N T"],
  candidates: Bool[Array, "N T"],
  *,
  count: Int[Array, ""],
  combine: str = "union",
  least_kl: float = 1e-8,
) -> Selection:
  """The tokens of largest entropy and of largest KL in a whole batch (EKSFT).

    M_H, M_K = the `count` candidates of largest entropy, of largest kl
    drop = M_H | M_K, or M_H & M_K

  Of equals the first are taken. Where no candidate's KL reaches `least_kl` (the
  policy is its reference still) there is nothing to choose by, and M_K is
  empty.

  Args:
    entropy: of each token's distribution, in nats.
    kl: to the reference, of each token's distribution, in nats.
    candidates: true on tokens that may be taken.
    count: k; at most as many as there are candidates.
    combine: "union" or "intersection".
    least_kl: in nats; 0 chooses always.

  References:
    arXiv:2605.29303.
  """
  chex.assert_equal_shape([entropy, kl, candidates])
  entropy, kl = jax.lax.stop_gradient((entropy, kl))
  moved = jnp.where(candidates, kl, 0.0).max() >= least_kl
  by_kl = ranks.largest(kl, candidates, jnp.where(moved, count, 0))
  by_entropy = ranks.largest(entropy, candidates, count)
  both = by_kl | by_entropy if combine == "union" else by_kl & by_entropy
  return Selection(by_kl, by_entropy, both)


def one_before(selected: Bool[Array, "N T"]) -> Bool[Array, "N T"]:
  """True on the token before each selected one (EKSFT's released code).

  There the scores of row t select label t, which is predicted by row t - 1.

  Args:
    selected: from select.
  """
  return jnp.pad(selected[:, 1:], ((0, 0), (0, 1)))


def means(*masks: Bool[Array, "N T"]) -> tuple[Float[Array, "N T"], ...]:
  """Weights by which a sum over tokens is a mean over a mask; 0 if empty.

  Args:
    *masks: of the whole batch.
  """
  return tuple(
    mask / jnp.maximum(mask.sum(), 1).astype(jnp.float32) for mask in masks
  )


def normalized_entropy(
  scores: types.Scores, weights: Float[Array, "N T"]
) -> Float[Array, ""]:
  """E = sum_it w_it H_it / ln V, with gradient; in [0, 1] for a mean.

  Args:
    scores: with entropy and the size of the vocabulary.
    weights: from `means`.
  """
  total = _sum(weights, scores.entropy, weights != 0)
  return total / jnp.log(float(scores.vocab_size))


def mean_kl(
  scores: types.Scores,
  weights: Float[Array, "N T"],
  *,
  probability_for_logprob: bool = False,
) -> Float[Array, ""]:
  """R = sum_it w_it KL(p || p_ref), over the vocabulary, with gradient.

  Args:
    scores: with reference_kl.
    weights: from `means`.
    probability_for_logprob: as EKSFT's released code, which has
      sum_v p (p - log p_ref), p where log p is meant; this needs collision and
      entropy.
  """
  counted = weights != 0
  total = _sum(weights, scores.reference_kl, counted)
  if probability_for_logprob:
    total += _sum(weights, scores.collision, counted)
    total += _sum(weights, scores.entropy, counted)
  return total


def adjusted(
  lam_h: Array | float,
  lam_k: Array | float,
  entropy: Float[Array, ""],
  kl: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Coefficients for a batch of these means: EKSFT's adjustment.

    lam_h * (1.05 if entropy < 0.5 else 0.95)
    lam_k * (1.05 if kl > 2 else 0.95)

  Args:
    lam_h: of the entropy bonus.
    lam_k: of the KL penalty.
    entropy: E, in [0, 1].
    kl: R, in nats.
  """
  return (
    lam_h * jnp.where(entropy < 0.5, 1.05, 0.95),
    lam_k * jnp.where(kl > 2.0, 1.05, 0.95),
  )


def _metrics(scores, counted, weights, loss) -> types.Metrics:
  """What both objectives log, over all tokens of the answers."""
  metrics = {
    "loss": loss,
    "cross_entropy": _sum(weights, -scores.logprobs, counted),
    "token_weight": jnp.where(counted, weights, 0.0).sum(),
  }
  if scores.entropy is not None:
    metrics["entropy"] = _sum(weights, scores.entropy, counted)
  return jax.lax.stop_gradient(metrics)


def _sum(weights, values, counted) -> Float[Array, ""]:
  """Of what is counted; the rest may hold anything."""
  return jnp.where(
    counted, weights * jnp.where(counted, values, 0.0), 0.0
  ).sum()


def selective_cross_entropy(
  scores: types.Scores,
  rollout: types.Rollout,
  advantages: Float[Array, "N T"],
  weights: Float[Array, "N T"],
  *,
  probability_for_logprob: bool = False,
) -> tuple[Float[Array, ""], types.Metrics]:
  """The objective of EKSFT.

    loss = -sum(kept logprobs) - lam_h E + lam_k R

  with the weights `kept`, of E and of R and the two coefficients from extras:
  imitated, explored, anchored [N, T], lam_h, lam_k [].

  Args:
    scores: with entropy, reference_kl and the size of the vocabulary.
    rollout: its completions are the answers.
    advantages: not read.
    weights: of a weighting, for the metrics over all tokens.
    probability_for_logprob: see mean_kl.

  Returns:
    The sum, and metrics: as cross_entropy, and kept_cross_entropy,
    normalized_entropy (E), selected_kl (R).
  """
  del advantages
  extras = rollout.extras
  kept = extras["imitated"]
  imitated = _sum(kept, -scores.logprobs, kept != 0)
  entropy = normalized_entropy(scores, extras["explored"])
  kl = mean_kl(
    scores,
    extras["anchored"],
    probability_for_logprob=probability_for_logprob,
  )
  loss = imitated - extras["lam_h"] * entropy + extras["lam_k"] * kl
  counted = rollout.mask & (weights != 0)
  own = {
    "kept_cross_entropy": imitated,
    "normalized_entropy": entropy,
    "selected_kl": kl,
  }
  return loss, _metrics(scores, counted, weights, loss) | (
    jax.lax.stop_gradient(own)
  )
