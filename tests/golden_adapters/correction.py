"""Cases of kind rollout_is, rollout_rs, mask and bypass-mode policy_loss."""

import functools
import math

import jax.numpy as jnp

from golden_adapters import other_losses
from jaxrl_llm.objectives import kl, ratios, surrogates, weighting
from jaxrl_llm.transforms import (
  mismatch,
  off_policy_masks,
  rejection,
  rollout_correction,
)

VERL = "verl-project/verl"
TRL = "huggingface/trl"
OPEN_INSTRUCT = "allenai/open-instruct"
AREAL = "inclusionAI/AReaL"
SLIME = "THUDM/slime"


def _pair(case, dtype):
  """Log-probs of trainer and sampler, and the mask."""
  old = case.array("old_logprobs", dtype)
  return old, case.array("rollout_logprobs", dtype), case.array("mask") > 0


def _band(threshold):
  """verl's rollout_is_threshold: "low_high" masks, a number truncates."""
  low, _, high = str(threshold).rpartition("_")
  mode = "mask" if low else "truncate"
  return {"mode": mode, "low": float(low or 0.0), "high": float(high)}


def verl_weights(case, dtype):
  old, sampled, mask = _pair(case, dtype)
  band = _band(case.params["threshold"])
  build = lambda **more: rollout_correction.rollout_weights(
    old, sampled, mask, level=case.name, **band, **more
  )
  gap = rollout_correction.log_mismatch(old, sampled, mask)
  found = mismatch.weight_metrics(
    build(),
    rollout_correction.log_weights(gap, mask, level=case.name, limit=math.inf),
    mask,
    low=band["low"],
    high=band["high"],
    count_empty_rows=True,
  )
  extreme = "rollout_is" if case.name == "token" else "rollout_raw"
  names = {
    "rollout_is_mean": "rollout_is_mean",
    "rollout_is_std": "rollout_is_std",
    "rollout_is_eff_sample_size": "rollout_is_ess",
    "rollout_is_min": f"{extreme}_min",
    "rollout_is_max": f"{extreme}_max",
    "rollout_is_ratio_fraction_high": "rollout_fraction_high",
    "rollout_is_ratio_fraction_low": "rollout_fraction_low",
  }
  return {
    "weights": build(normalize=case.params["batch_normalize"]),
    "metrics": {theirs: found[ours] for theirs, ours in names.items()},
  }


def trl_ratio(case, dtype):
  old, sampled, mask = _pair(case, dtype)
  level, mode = case.name.split("_")
  gap = rollout_correction.log_mismatch(old, sampled, mask)
  log_ratio = rollout_correction.log_weights(gap, mask, level=level)
  bound = {
    "truncate": rollout_correction.truncated,
    "mask": rollout_correction.masked_outside,
  }[mode]
  low, high = case.params["clip_min"], case.params["clip_max"]
  low = 0.0 if low is None else low
  return {"ratio": bound(log_ratio, low=low, high=high or math.inf)}


def open_instruct_weights(case, dtype):
  """Its clamp and its mask are two steps; a bound of 0 is none."""
  old, sampled, mask = _pair(case, dtype)
  options = case.params
  low, high = options["mask_low"], options["mask_high"]
  row = options["sequence_level"]
  gap = rollout_correction.log_mismatch(old, sampled, mask)
  log_ratio = rollout_correction.log_weights(
    gap, mask, level="geometric" if row else "token", limit=10.0
  )
  clamp = options["clamp_max"] or math.inf
  weights = rollout_correction.truncated(log_ratio, high=clamp)
  if options["tv"]:
    advantages = case.array("advantages", dtype)[:, None]
    keep = off_policy_masks.total_variation_mask(
      old,
      sampled,
      jnp.broadcast_to(advantages, mask.shape),
      mask,
      low=low,
      high=high,
      limit=10.0,
    )
  else:
    name = "seq_mean_ratio" if row else "token_ratio"
    rule = rejection.Rule(name, low, high or math.inf)
    keep = rejection.rejection_mask(old, sampled, mask, rules=[rule])
  return {"weights": jnp.where(keep, weights, 0.0)}


def verl_mask(case, dtype):
  rules = rejection.parse(case.name, case.params["threshold"])
  return {"mask": rejection.rejection_mask(*_pair(case, dtype), rules=rules)}


def m2po(case, dtype):
  threshold = case.params["threshold"]
  pair = _pair(case, dtype)
  return {
    "mask": off_policy_masks.second_moment_mask(*pair, threshold=threshold)
  }


def opsm(case, dtype):
  mask = case.array("mask") > 0
  advantages = case.array("advantages", dtype)[:, None]
  keep = off_policy_masks.off_policy_sequence_mask(
    case.array("logprobs", dtype),
    case.array("rollout_logprobs", dtype),
    jnp.broadcast_to(advantages, mask.shape),
    mask,
    delta=case.params["delta"],
  )
  return {"keep_row": (keep | ~mask).all(axis=1)}


def verl_bypass(case, dtype):
  """old_logprobs are the sampler's; verl recounts what the rules leave.

  The clips, 0.2, 0.28 and 3, are not in the case: read off its numbers.
  """
  options = case.params
  pair = case.array("logprobs", dtype), case.array("old_logprobs", dtype)
  mask = case.array("mask") > 0
  extras = {}
  surrogate = lambda tokens: surrogates.dual_clip_surrogate(
    tokens.log_ratio, tokens.advantages, clip_high=0.28
  )
  if options["loss_type"] == "reinforce":
    surrogate = lambda tokens: surrogates.reinforce_surrogate(
      tokens.logprobs, tokens.advantages
    )
    if options["rollout_is"]:
      extras["rollout_is"] = rollout_correction.rollout_weights(
        *pair,
        mask,
        level=options["rollout_is"],
        **_band(options["rollout_is_threshold"]),
      )
  if options["rollout_rs"]:
    rules = rejection.parse(
      options["rollout_rs"], options["rollout_rs_threshold"]
    )
    mask = rejection.rejection_mask(*pair, mask, rules=rules)
  found, shares = other_losses.evaluate(
    case,
    dtype,
    surrogate=surrogate,
    ratio=ratios.token_log_ratio,
    mask=mask,
    extras=extras,
    weigh=_AGGREGATION[options["loss_agg_mode"]],
  )
  each = weighting.token_mean(mask, jnp.ones(mask.shape[0], dtype))
  gap = ratios.token_log_ratio(*pair, mask)
  metrics = {"actor/ppo_kl": (each * kl.k1(-gap)).sum()}
  if options["loss_type"] != "reinforce":
    metrics["actor/pg_clipfrac"] = shares["clip_fraction"]
    metrics["actor/pg_clipfrac_lower"] = shares["dual_clip_fraction"]
  return found | {"metrics": metrics}


_AGGREGATION = {
  "token-mean": weighting.token_mean,
  "token-sum": weighting.token_sum,
  "seq-mean-token-mean": functools.partial(
    weighting.sequence_mean, count_empty_rows=False
  ),
  "seq-mean-token-sum": functools.partial(
    weighting.sequence_sum, count_empty_rows=False
  ),
}
_VERL_RULES = (
  "token_k1 token_k2 token_k3 seq_sum_k1 seq_sum_k2 seq_sum_k3 seq_mean_k1"
  " seq_mean_k2 seq_mean_k3 seq_max_k2 seq_max_k3"
).split()

ADAPTERS = {
  **{(VERL, "rollout_is", x): verl_weights for x in ("token", "sequence")},
  **{(VERL, "rollout_rs", name): verl_mask for name in _VERL_RULES},
  **{
    (TRL, "rollout_is", f"{level}_{mode}"): trl_ratio
    for level in ("token", "sequence")
    for mode in ("truncate", "mask")
  },
  **{
    (OPEN_INSTRUCT, "rollout_is", name): open_instruct_weights
    for name in ("tis", "icepop", "seq_mask", "tv")
  },
  (VERL, "policy_loss", "bypass_mode"): verl_bypass,
  (AREAL, "mask", "m2po"): m2po,
  (SLIME, "mask", "opsm"): opsm,
}
