"""Cases of kind policy_loss of verl."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import (
  covariance,
  divergence,
  geometric,
  policy,
  ratios,
  soft_clips,
  surrogates,
  weighting,
)

_VERL = "verl-project/verl"
# verl bounds no log-ratio in these losses, and all others at 20 nats.
_RAW = functools.partial(ratios.token_log_ratio, limit=float("inf"))


def _clip(params):
  return {name: params[name] for name in ("clip_low", "clip_high")}


def _vanilla(tokens, params):
  return surrogates.dual_clip_surrogate(
    tokens.log_ratio,
    tokens.advantages,
    **_clip(params),
    dual_clip=params["dual_clip_c"],
  )


def _clipped(tokens, params):
  return surrogates.clipped_surrogate(
    tokens.log_ratio, tokens.advantages, **_clip(params)
  )


def _cispo(tokens, params):
  return soft_clips.cispo_surrogate(
    tokens.logprobs,
    tokens.log_ratio,
    tokens.advantages,
    ratio_low=1.0 - params["clip_low"],
    ratio_high=1.0 + params["clip_high"],
  )


def _sapo(tokens, params):
  return soft_clips.sapo_surrogate(
    tokens.log_ratio,
    tokens.advantages,
    tau_pos=params["tau_pos"],
    tau_neg=params["tau_neg"],
  )


def _gmpo(tokens, params):
  return geometric.geometric_mean_surrogate(
    tokens.log_ratio,
    tokens.advantages,
    tokens.mask,
    tokens.rollout.extras.get("rollout_is"),
    **_clip(params),
  )


def _dppo(keep_fn, tokens, params):
  keep = keep_fn(
    tokens.logprobs,
    tokens.old_logprobs,
    tokens.advantages,
    bound_low=params["div_low"],
    bound_high=params["div_high"],
  )
  return divergence.dppo_surrogate(
    tokens.logprobs,
    tokens.log_ratio,
    tokens.advantages,
    keep,
    truncation=params["trunc_c"],
  )


def _dro(tokens, params):
  return divergence.dro_surrogate(
    tokens.logprobs, tokens.log_ratio, tokens.advantages, beta=params["beta"]
  )


def _gpg(tokens, params):
  del params
  return surrogates.reinforce_surrogate(tokens.logprobs, tokens.advantages)


def _clip_cov(tokens, params):
  drop = covariance.clip_cov_drop(
    tokens.logprobs,
    tokens.log_ratio,
    tokens.advantages,
    tokens.mask,
    jax.random.uniform(jax.random.key(0), tokens.mask.shape),
    fraction=params["cov_ratio"],
    cov_low=params["cov_lb"],
    cov_high=params["cov_ub"],
    **_clip(params),
  )
  loss, _ = _clipped(tokens, params)
  return jnp.where(drop, 0.0, loss), {"dropped_fraction": drop * 1.0}


def _kl_cov(tokens, params):
  select = covariance.kl_cov_select(
    tokens.logprobs,
    tokens.advantages,
    tokens.mask,
    fraction=params["kl_cov_ratio"],
  )
  return covariance.kl_cov_surrogate(
    tokens.log_ratio, tokens.advantages, select, coef=params["ppo_kl_coef"]
  )


_CLIPPED = {
  "actor/pg_clipfrac": ("clip_fraction_low", "clip_fraction_high"),
  "actor/pg_clipfrac_lower": ("dual_clip_fraction",),
}
_MASKED = {
  "actor/pg_clipfrac": ("mask_fraction",),
  "actor/pg_clipfrac_lower": ("truncated_fraction",),
}
_DROPPED = {"actor/pg_clipfrac": ("dropped_fraction",)}
_ONE_SIDED = {"actor/pg_clipfrac": _CLIPPED["actor/pg_clipfrac"]}
_GSPO = {"ratio": ratios.sequence_token_log_ratio, "metrics": _ONE_SIDED}
# verl's (surrogate, ratio, factors, metrics); the mean over rows counts empty
# ones in geo_mean alone, and gspo and sapo have one mode whatever is asked.
_LOSSES = {
  "vanilla": (_vanilla, {"metrics": _CLIPPED}),
  "gspo": (_clipped, _GSPO | {"mode": "seq-mean-token-mean"}),
  "sapo": (_sapo, {"mode": "seq-mean-token-mean"}),
  "cispo": (_cispo, {"metrics": _ONE_SIDED}),
  "geo_mean": (_gmpo, {"ratio": _RAW, "factors": (), "mode": "rows"}),
  "dppo_tv": (
    functools.partial(_dppo, divergence.binary_tv_keep),
    {"metrics": _MASKED},
  ),
  "dppo_kl": (
    functools.partial(_dppo, divergence.binary_kl_keep),
    {"metrics": _MASKED},
  ),
  "dro": (_dro, {}),
  "gpg": (_gpg, {}),
  "clip_cov": (_clip_cov, {"ratio": _RAW, "metrics": _DROPPED}),
  "kl_cov": (_kl_cov, {"ratio": _RAW}),
}


def _weighting(mode, params):
  """The aggregation mode as one of ours."""
  nonempty = {"count_empty_rows": False}
  length = params.get("loss_scale_factor")
  return {
    "token-mean": weighting.token_mean,
    "token-sum": weighting.token_sum,
    "seq-mean-token-mean": functools.partial(
      weighting.sequence_mean, **nonempty
    ),
    "seq-mean-token-sum": functools.partial(weighting.sequence_sum, **nonempty),
    "seq-mean-token-sum-norm": functools.partial(
      weighting.fixed_length, length=length, **nonempty
    ),
    "rows": weighting.sequence_mean,
  }[mode]


def _policy_loss(
  case, dtype, *, surrogate, ratio=ratios.token_log_ratio, **options
):
  mask = case.array("mask", bool)
  rollout = _rollout(case, dtype, mask)
  advantages = base.per_token(case.array("advantages", dtype), mask)
  mode = options.get("mode", case.params.get("loss_agg_mode"))
  rows = rollout.weights
  weights = _weighting(mode, case.params)(mask, rows)
  objective = policy.policy_objective(
    surrogate=lambda tokens: surrogate(tokens, case.params),
    ratio=ratio,
    factors=options.get("factors", policy.FACTORS),
  )
  run = jax.value_and_grad(objective, has_aux=True)
  scores = types.Scores(logprobs=case.array("logprobs", dtype))
  (loss, _), grads = run(scores, rollout, advantages, weights)
  # verl's metrics are means over tokens, whatever the loss is.
  shares = objective(
    scores, rollout, advantages, weighting.token_mean(mask, rows)
  )[1]
  return {
    "loss": loss,
    "grad_logprobs": grads.logprobs,
    "metrics": {
      name: sum(shares[part] for part in parts)
      for name, parts in options.get("metrics", {}).items()
    },
  }


def _rollout(case, dtype, mask):
  rows = mask.shape[0]
  extras = {}
  if "is_weights" in case.inputs:
    extras["rollout_is"] = case.array("is_weights", dtype)
  return types.Rollout(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=case.array("old_logprobs", dtype),
    rewards=jnp.zeros(rows, dtype),
    weights=jnp.ones(rows, dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
    extras=extras,
  )


ADAPTERS = {
  (_VERL, "policy_loss", name): functools.partial(
    _policy_loss, surrogate=surrogate, **options
  )
  for name, (surrogate, options) in _LOSSES.items()
}
