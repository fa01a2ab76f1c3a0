"""Cases of a critic: kind value_loss, and advantage "gae"."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.advantages import gae, token
from jaxrl_llm.objectives import values, weighting

VERL = "verl-project/verl"

_EMPTY = {"count_empty_rows": False}
_MODES = {
  "token-mean": weighting.token_mean,
  "seq-mean-token-mean": functools.partial(weighting.sequence_mean, **_EMPTY),
  "seq-mean-token-sum": functools.partial(weighting.sequence_sum, **_EMPTY),
  "seq-mean-token-sum-norm": functools.partial(
    weighting.fixed_length, **_EMPTY
  ),
}


def _verl_gae(case, dtype):
  """verl does not mask what it returns: the moments are ours, spread out."""
  mask = jnp.asarray(case.inputs["mask"] > 0)
  rewards = case.array("token_level_rewards", dtype)
  advantages, returns = gae.generalized_advantages(
    rewards,
    case.array("values", dtype),
    mask,
    gamma=case.params["gamma"],
    lam=case.params["lam"],
    carry=True,
  )
  if case.params["whitened"]:
    mean, variance = token.moments(advantages, mask, ddof=1)
    everywhere = (advantages - mean) * jax.lax.rsqrt(variance + 1e-8)
    whitened = token.whiten(advantages, mask)
    advantages = jnp.where(mask, whitened, everywhere)
  return {"advantages": advantages, "returns": returns}


def _verl_value_loss(case, dtype):
  mask = jnp.asarray(case.inputs["mask"] > 0)
  rows = jnp.ones(mask.shape[0], dtype)
  returns, old = (case.array(k, dtype) for k in ("returns", "values_old"))
  weights = _MODES[case.params["loss_agg_mode"]](mask, rows)

  def loss(now):
    each, metrics = values.clipped_value_loss(
      now, returns, old, clip=case.params["cliprange_value"]
    )
    share = metrics["value_clip_fraction"] * weighting.token_mean(mask, rows)
    return (weights * each).sum(), share.sum()

  (total, share), grads = jax.value_and_grad(loss, has_aux=True)(
    case.array("values_new", dtype)
  )
  return {"loss": total, "grad_values": grads, "clipfrac": share}


ADAPTERS = {
  (VERL, "advantage", "gae"): _verl_gae,
  (VERL, "value_loss", "clipped_value"): _verl_value_loss,
}
