"""Cases of kind policy_loss of TRL."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import (
  geometric,
  kl,
  penalties,
  policy,
  ratios,
  soft_clips,
  surrogates,
  weighting,
)
from jaxrl_llm.transforms import entropy_mask, off_policy_masks

_TRL = "huggingface/trl"
_INF = float("inf")
# TRL bounds no log-ratio, but for VESPO's.
_RATIOS = {
  "token": functools.partial(ratios.token_log_ratio, limit=_INF),
  "sequence": functools.partial(ratios.sequence_log_ratio, limit=_INF),
  "sum": functools.partial(ratios.sequence_sum_log_ratio, limit=_INF),
  "vespo": functools.partial(
    ratios.sequence_sum_log_ratio, limit=_INF, token_limit=20.0
  ),
}


def _clipped(tokens, params):
  clip = {
    "clip_low": params["epsilon_low"],
    "clip_high": params["epsilon_high"],
  }
  surrogate = surrogates.clipped_surrogate
  if params.get("delta") is not None:
    surrogate = surrogates.two_sided_surrogate
    clip["delta"] = params["delta"]
  return surrogate(tokens.log_ratio, tokens.advantages, **clip)


def _cispo(tokens, params):
  return soft_clips.cispo_surrogate(
    tokens.logprobs,
    tokens.log_ratio,
    tokens.advantages,
    ratio_high=params["epsilon_high"],
  )


def _sapo(tokens, params):
  return soft_clips.sapo_surrogate(
    tokens.log_ratio,
    tokens.advantages,
    tau_pos=params.get("sapo_temperature_pos", 1.0),
    tau_neg=params.get("sapo_temperature_neg", 1.05),
  )


def _vespo(tokens, params):
  log_ratio = tokens.log_ratio
  if "rollout_is" in tokens.rollout.extras:
    log_ratio += ratios.sequence_log_weight(
      tokens.rollout.extras["rollout_is"],
      tokens.mask,
      level=params["is_level"],
    )
  names = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")
  knobs = {k: params[f"vespo_{k}"] for k in names if f"vespo_{k}" in params}
  return soft_clips.vespo_surrogate(
    tokens.logprobs, log_ratio, tokens.advantages, **knobs
  )


def _gmpo(tokens, params):
  return geometric.geometric_mean_surrogate(
    tokens.log_ratio,
    tokens.advantages,
    tokens.mask,
    clip_low=params["epsilon_low"],
    clip_high=params["epsilon_high"],
  )


def _fixed_length(mask, rows, params):
  length = params["max_completion_length"]
  return weighting.fixed_length(mask, rows, length=length)


# loss_type -> surrogate, weighting and, where it is its own, the ratio.
_LOSSES = {
  "grpo": (_clipped, weighting.sequence_mean, None),
  "bnpo": (_clipped, weighting.token_mean, None),
  "dr_grpo": (_clipped, _fixed_length, None),
  "dapo": (_clipped, weighting.token_mean, None),
  "luspo": (_clipped, weighting.sequence_sum, None),
  "cispo": (_cispo, weighting.token_mean, None),
  "sapo": (_sapo, weighting.sequence_mean, None),
  "vespo": (_vespo, weighting.token_mean, "vespo"),
  "gmpo": (_gmpo, weighting.sequence_mean, "token"),
  "rloo_sequence_ppo": (_clipped, weighting.sequence_mean, "sum"),
}


def _policy_loss(case, dtype):
  surrogate, weigh, own_ratio = _LOSSES[case.name]
  params = dict(case.params)
  level = own_ratio or params.get("importance_sampling_level", "token")
  if "is_ratio" in case.inputs:
    by_row = case.inputs["is_ratio"].shape[1] == 1
    params["is_level"] = "sequence" if by_row else "token"
  rollout, scores, advantages = _arrays(case, dtype)
  weights = _weights(weigh, rollout, params)
  rollout = _with_factors(rollout, scores, advantages, weights, params)
  objective = policy.policy_objective(
    surrogate=lambda tokens: surrogate(tokens, params),
    ratio=_RATIOS[level],
    penalties=tuple(_penalties(params, _RATIOS[level])),
    factors=("keep",) if case.name == "vespo" else policy.FACTORS,
  )
  run = jax.value_and_grad(objective, has_aux=True)
  # TRL leaves the sum over accumulated batches to the optimizer's step.
  accumulated = weights / params.get("grad_accum", 1)
  (loss, _), grads = run(scores, rollout, advantages, accumulated)
  if case.name == "gmpo":
    loss += _of_empty_rows(case, dtype) / params.get("grad_accum", 1)
  outputs = {"loss": loss, "grad_logprobs": grads.logprobs}
  if "grad_entropy" in case.outputs:
    outputs["grad_entropy"] = grads.entropy
  found = functools.partial(objective, scores, rollout, advantages)
  metrics = _metrics(case, params, found, rollout, weights)
  known = case.outputs.get("metrics", {})
  return outputs | {"metrics": {k: v for k, v in metrics.items() if k in known}}


def _of_empty_rows(case, dtype):
  """TRL's GMPO gives an empty row the loss exp(0) * -A: a constant.

  It has no gradient, and a sum over tokens has no place for it: ours is 0.
  """
  empty = ~case.array("mask", bool).any(axis=1)
  return -jnp.where(empty, case.array("advantages", dtype), 0.0).mean()


def _arrays(case, dtype):
  mask = case.array("mask", bool)
  rows = mask.shape[0]
  extras = {}
  if "is_ratio" in case.inputs:
    weight = case.array("is_ratio", dtype)
    extras["rollout_is"] = jnp.broadcast_to(weight, mask.shape)
  if "rollout_logprobs" in case.inputs:
    extras["sampler_logprobs"] = case.array("rollout_logprobs", dtype)
  read = lambda name: (  # noqa: E731
    case.array(name, dtype) if name in case.inputs else None
  )
  rollout = types.Rollout(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=case.array("old_logprobs", dtype),
    ref_logprobs=read("ref_logprobs"),
    rewards=jnp.zeros(rows, dtype),
    weights=jnp.ones(rows, dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
    extras=extras,
  )
  scores = types.Scores(
    logprobs=case.array("logprobs", dtype), entropy=read("entropy")
  )
  return rollout, scores, base.per_token(case.array("advantages", dtype), mask)


def _weights(weigh, rollout, params):
  knobs = {"params": params} if weigh is _fixed_length else {}
  return weigh(rollout.mask, rollout.weights, **knobs)


def _with_factors(rollout, scores, advantages, weights, params):
  """What stands before the loss: OPSM, top entropy, the bonus's tokens."""
  extras = dict(rollout.extras)
  if params.get("off_policy_mask_threshold") is not None:
    extras["keep"] = off_policy_masks.off_policy_sequence_mask(
      scores.logprobs,
      extras.get("sampler_logprobs", rollout.old_logprobs),
      advantages,
      rollout.mask,
      delta=params["off_policy_mask_threshold"],
    ).astype(weights.dtype)
  rollout = rollout.replace(extras=extras)
  tokens = rollout.mask
  if params.get("top_entropy_quantile", 1.0) < 1:
    rollout = rollout.replace(extras=extras | {"old_entropy": scores.entropy})
    marked = entropy_mask.top_entropy_mask(rho=params["top_entropy_quantile"])
    rollout, _ = marked.update(rollout, marked.init())
    tokens = rollout.extras["top_entropy"]
  factor = entropy_mask.bonus_factor(weights, tokens)
  return rollout.replace(extras=rollout.extras | {"entropy_factor": factor})


def _penalties(params, ratio):
  if params.get("beta"):
    term = penalties.estimated(kl.k3)
    if params.get("use_bias_correction_kl"):
      term = penalties.weighed(kl.k3, ratio=ratio)
    yield penalties.Penalty("reference_kl", params["beta"], term)
  if params.get("entropy_coef"):
    yield penalties.Penalty(
      "negative_entropy",
      params["entropy_coef"],
      penalties.negative_mean_entropy,
    )


def _metrics(case, params, found, rollout, weights):
  """TRL's means: over tokens, or over rows for what is one number a row."""
  mask, rows = rollout.mask, rollout.weights
  tokens = found(weighting.token_mean(mask, rows))[1]
  each = found(weighting.sequence_mean(mask, rows))[1]
  by_row = params.get("importance_sampling_level") == "sequence"
  shares = each if by_row else tokens
  metrics = {}
  if "clip_fraction" in shares and case.name != "cispo":
    for ours, theirs in (
      ("clip_fraction_low", "low_mean"),
      ("clip_fraction_high", "high_mean"),
      ("clip_fraction", "region_mean"),
    ):
      metrics[f"clip_ratio/{theirs}"] = shares[ours]
  if "reference_kl" in tokens:
    metrics["kl"] = tokens["reference_kl"]
  if "entropy" in tokens:
    metrics["entropy"] = tokens["entropy"]
  if "phi" in each:  # of an empty row it is 1
    metrics["vespo/phi_seq_mean"] = each["phi"] + 1.0 - each["token_weight"]
  if "negative_entropy" in tokens:
    coef, whole = params["entropy_coef"], found(weights)[1]
    metrics["policy_loss"] = whole["loss"] - coef * whole["negative_entropy"]
    metrics["entropy_coef"] = coef
  return metrics


ADAPTERS = {(_TRL, "policy_loss", name): _policy_loss for name in _LOSSES}
