"""Builds an objective from a ratio, a surrogate and penalties."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrl_llm import types
from jaxrl_llm.objectives import penalties as terms
from jaxrl_llm.objectives import ratios

# Arrays [N, T] of rollout.extras that multiply the surrogate, constants: the
# weights of a rollout correction, and 0 or 1 of a selection of tokens.
FACTORS = ("rollout_is", "keep")


def policy_objective(
  *,
  surrogate: Callable,
  ratio: Callable = ratios.token_log_ratio,
  penalties: Sequence[terms.Penalty] = (),
  factors: Sequence[str] = FACTORS,
) -> types.ObjectiveFn:
  """Composes the loss that nearly every method has.

    loss = sum(weights * (factors * surrogate + sum_k coef_k * term_k))

  Tokens outside the mask and rows of weight 0 may hold anything, inf and NaN
  included: neither the value nor a gradient sees them.

  Args:
    surrogate: types.Tokens -> (loss [N, T], {name: [N, T]}).
    ratio: (logprobs, old_logprobs, mask) -> log-ratio [N, T] in nats.
    penalties: further terms; no factor touches them.
    factors: names in extras that multiply the surrogate where a rollout has
      them; a method that uses one in its own way leaves it out here.

  Returns:
    An objective. Its metrics are sums over tokens with the weights of the
    loss, so they add over micro-batches, and are means where the weights sum
    to 1 (`token_weight`, else see token_averages): loss, policy_loss,
    approx_kl of old to new (nats, not negative), clip_fraction and its two
    sides, each penalty by name, and entropy (nats) when it was scored.
  """

  def objective(scores, rollout, advantages, weights):
    counted = rollout.mask & (weights != 0)
    weights = jnp.where(counted, weights, 0.0)
    advantages = jnp.where(counted, advantages, 0.0)
    rollout = rollout.replace(mask=counted)
    log_ratio = ratio(scores.logprobs, rollout.old_logprobs, counted)
    tokens = types.Tokens(
      logprobs=jnp.where(counted, scores.logprobs, 0.0),
      old_logprobs=jnp.where(counted, rollout.old_logprobs, 0.0),
      log_ratio=log_ratio,
      advantages=advantages,
      mask=counted,
      rollout=rollout,
    )
    token_loss, per_token = surrogate(tokens)
    token_loss *= _product(tokens, factors)
    policy_loss = (weights * token_loss).sum()
    added, extra = _terms(penalties, scores, rollout, weights)
    loss = policy_loss + added
    per_token = per_token | _diagnostics(scores, log_ratio, counted)
    metrics = {name: (weights * x).sum() for name, x in per_token.items()}
    metrics |= extra | {
      "loss": loss,
      "policy_loss": policy_loss,
      "token_weight": weights.sum(),
    }
    return loss, jax.lax.stop_gradient(_with_clip_fraction(metrics))

  return objective


def with_penalties(
  objective: types.ObjectiveFn, penalties: Sequence[terms.Penalty]
) -> types.ObjectiveFn:
  """An objective with further terms, weighed as its tokens are.

  Args:
    objective: any.
    penalties: added to its loss; each is a metric by its name.
  """

  def penalized(scores, rollout, advantages, weights):
    loss, metrics = objective(scores, rollout, advantages, weights)
    counted = rollout.mask & (weights != 0)
    weights = jnp.where(counted, weights, 0.0)
    added, extra = _terms(
      penalties, scores, rollout.replace(mask=counted), weights
    )
    extra = jax.lax.stop_gradient(extra | {"loss": loss + added})
    return loss + added, metrics | extra

  return penalized


def token_averages(metrics: types.Metrics) -> types.Metrics:
  """Divides by token_weight what is per token; the losses stay as they are.

  Changes nothing for token_mean and sequence_mean, whose weights sum to 1;
  fixed_length weights sum to the mean length over L.

  Args:
    metrics: of a policy_objective, summed over the pieces of a batch.
  """
  total = metrics["token_weight"]
  scale = 1.0 / jnp.where(total > 0, total, 1.0)
  losses = ("loss", "policy_loss", "token_weight")
  return {
    name: value if name in losses else value * scale
    for name, value in metrics.items()
  }


def _terms(penalties, scores, rollout, weights):
  """Sum of the terms with their coefficients, and each without."""
  total, found = jnp.zeros(()), {}
  for name, coef, term in penalties:
    found[name] = (weights * term(scores, rollout)).sum()
    if isinstance(coef, str):
      coef = rollout.extras[coef]
    total += coef * found[name]
  return total, found


def _product(tokens, names) -> Array:
  """Of the factors that the rollout has; they are constants."""
  product = jnp.ones(())
  for name in names:
    if name in tokens.rollout.extras:
      product *= jnp.where(tokens.mask, tokens.rollout.extras[name], 0.0)
  return jax.lax.stop_gradient(product)


def _diagnostics(scores, log_ratio, counted) -> dict:
  """Per-token numbers that any ratio has."""
  out = {"approx_kl": jnp.expm1(log_ratio) - log_ratio}
  if scores.entropy is not None:
    out["entropy"] = jnp.where(counted, scores.entropy, 0.0)
  return out


def _with_clip_fraction(metrics) -> types.Metrics:
  """Adds the two sides up, for a surrogate that has sides."""
  sides = ("clip_fraction_low", "clip_fraction_high")
  present = [metrics[name] for name in sides if name in metrics]
  return metrics | ({"clip_fraction": sum(present)} if present else {})
