"""Builds an objective from a ratio, a surrogate and penalties."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrl_llm import types
from jaxrl_llm.objectives import penalties as terms
from jaxrl_llm.objectives import ratios


def rollout_correction(tokens: types.Tokens) -> Array:
  """extras["rollout_is"], 1 where a rollout has none; constant.

  Args:
    tokens: what the surrogate looks at.

  Returns:
    A factor [N, T], or a scalar 1.
  """
  weights = tokens.rollout.extras.get("rollout_is")
  if weights is None:
    return jnp.ones(())
  return jax.lax.stop_gradient(jnp.where(tokens.mask, weights, 0.0))


def policy_objective(
  *,
  surrogate: Callable,
  ratio: Callable = ratios.token_log_ratio,
  penalties: Sequence[terms.Penalty] = (),
  correction: Callable = rollout_correction,
) -> types.ObjectiveFn:
  """Composes the loss that nearly every method has.

    loss = sum(weights * (correction * surrogate + sum_k coef_k * term_k))

  Tokens outside the mask and rows of weight 0 may hold anything, inf and NaN
  included: neither the value nor a gradient sees them.

  Args:
    surrogate: types.Tokens -> (loss [N, T], {name: [N, T]}).
    ratio: (logprobs, old_logprobs, mask) -> log-ratio [N, T] in nats.
    penalties: further terms; no correction touches them.
    correction: types.Tokens -> factor of the surrogate.

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
    policy_loss = (weights * correction(tokens) * token_loss).sum()
    loss, extra = policy_loss, {}
    for name, coef, term in penalties:
      extra[name] = (weights * term(scores, rollout)).sum()
      if isinstance(coef, str):
        coef = rollout.extras[coef]
      loss += coef * extra[name]
    per_token = per_token | _diagnostics(scores, log_ratio, counted)
    metrics = {name: (weights * x).sum() for name, x in per_token.items()}
    metrics |= extra | {
      "loss": loss,
      "policy_loss": policy_loss,
      "token_weight": weights.sum(),
    }
    return loss, jax.lax.stop_gradient(_with_clip_fraction(metrics))

  return objective


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
