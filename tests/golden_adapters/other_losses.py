"""Cases of kind policy_loss of the libraries besides TRL and verl."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import (
  divergence,
  kl,
  penalties,
  policy,
  ratios,
  soft_clips,
  surrogates,
  weighting,
)
from jaxrl_llm.transforms import rejection, rollout_correction

OPEN_RLHF = "OpenRLHF/OpenRLHF"
PRIME = "PrimeIntellect-ai/prime-rl"
OPEN_INSTRUCT = "allenai/open-instruct"
AREAL = "inclusionAI/AReaL"
SLIME = "THUDM/slime"
_RAW = functools.partial(ratios.token_log_ratio, limit=math.inf)
_MEAN = functools.partial(ratios.sequence_log_ratio, limit=math.inf)
_NONEMPTY = functools.partial(weighting.sequence_mean, count_empty_rows=False)


def evaluate(case, dtype, *, surrogate, old="old_logprobs", **options):
  """Loss and gradient of a policy_objective, and its metrics over tokens.

  Options: ratio, weigh, terms, extras, mask (of the loss, where it is not the
  case's).
  """
  get = lambda name: case.array(name, dtype)
  mask = options.get("mask", case.array("mask") > 0)
  rows = mask.shape[0]
  rollout = types.Rollout(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=get(old),
    rewards=jnp.zeros(rows, dtype),
    weights=jnp.ones(rows, dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
    ref_logprobs=get("ref_logprobs") if "ref_logprobs" in case.inputs else None,
    extras=options.get("extras", {}),
  )
  objective = policy.policy_objective(
    surrogate=surrogate,
    ratio=options.get("ratio", _RAW),
    penalties=options.get("terms", ()),
  )
  scores = types.Scores(logprobs=get("logprobs"))
  advantages = base.per_token(get("advantages"), mask)
  run = jax.value_and_grad(objective, has_aux=True)
  weigh = options.get("weigh", weighting.token_mean)
  weights = weigh(mask, rollout.weights)
  (loss, _), grads = run(scores, rollout, advantages, weights)
  by_token = weighting.token_mean(mask, rollout.weights)
  shares = objective(scores, rollout, advantages, by_token)[1]
  return {"loss": loss, "grad_logprobs": grads.logprobs}, shares


def _clipped(low, high, dual=None):
  def surrogate(tokens):
    pair, clip = (tokens.log_ratio, tokens.advantages), {"clip_low": low}
    if dual is None:
      return surrogates.clipped_surrogate(*pair, **clip, clip_high=high)
    return surrogates.dual_clip_surrogate(
      *pair, **clip, clip_high=high, dual_clip=dual
    )

  return surrogate


def open_rlhf(case, dtype):
  """PolicyLoss; its gspo has the mean over rows, whatever token_level says."""
  options = case.params
  kind, _, correction = options["type"].partition("+")
  gspo = kind == "gspo"
  extras = {}
  if correction:
    low, high = options["thresholds"]
    mode = {"tis": "truncate", "icepop": "mask", "seq-mask-tis": "seq_mask"}
    extras["rollout_is"] = rollout_correction.rollout_weights(
      case.array("old_logprobs", dtype),
      case.array("rollout_logprobs", dtype),
      case.array("mask") > 0,
      mode=mode[correction],
      low=low,
      high=high,
    )
  by_token = options.get("token_level", True) and not gspo
  found, shares = evaluate(
    case,
    dtype,
    surrogate=_clipped(
      options["low"], options["high"], options.get("dual_clip")
    ),
    ratio=_MEAN if gspo else _RAW,
    weigh=weighting.token_mean if by_token else _NONEMPTY,
    extras=extras,
  )
  mask = case.array("mask") > 0
  gap = _RAW(
    case.array("logprobs", dtype), case.array("old_logprobs", dtype), mask
  )
  each = weighting.token_mean(mask, jnp.ones(mask.shape[0], dtype))
  return found | {
    "clip_ratio": shares["clip_fraction"],
    "ppo_kl": (each * kl.k1(-gap)).sum(),
  }


def _tether(coef):
  """prime-rl's kl_tau * log_ratio^2, of the policy and its sampler."""

  def term(scores, rollout):
    pair = (scores.logprobs, rollout.old_logprobs, rollout.mask)
    return kl.k2(_RAW(*pair))

  return [penalties.Penalty("tether", 2.0 * coef, term)]


def _prime(case, dtype, keep, *, kl_tau, adv_tau=1.0, credit=None):
  def surrogate(tokens):
    advantages = credit(tokens) if credit else adv_tau * tokens.advantages
    losses, found = surrogates.unclipped_surrogate(tokens.log_ratio, advantages)
    kept = keep(tokens.logprobs, tokens.old_logprobs, tokens.advantages)
    return jnp.where(kept, losses, 0.0), found

  return evaluate(
    case,
    dtype,
    surrogate=surrogate,
    old="rollout_logprobs",
    terms=_tether(kl_tau),
  )[0]


def prime_dppo(case, dtype):
  options = case.params
  keep = functools.partial(
    divergence.binary_tv_keep,
    bound_low=options["dppo_mask_low"],
    bound_high=options["dppo_mask_high"],
  )
  return _prime(
    case, dtype, keep, kl_tau=options["kl_tau"], adv_tau=options["adv_tau"]
  )


def prime_ipo(case, dtype):
  """Both bounds, whichever way the advantage pushes."""
  options = case.params
  bound = options["ipo_threshold"]

  def keep(logprobs, old_logprobs, advantages):
    ones = jnp.ones_like(advantages)
    up, down = (
      divergence.binary_tv_keep(
        logprobs, old_logprobs, sign, bound_low=bound, bound_high=bound
      )
      for sign in (ones, -ones)
    )
    return up & down

  return _prime(
    case, dtype, keep, kl_tau=options["kl_tau"], adv_tau=options["adv_tau"]
  )


def prime_ref_kl(case, dtype):
  """Credit log ref - log pi, the lower bound of 0.2 alone, kl_tau 1e-3.

  Its options are not in the case: they were read off its numbers.
  """

  def credit(tokens):
    d = _RAW(tokens.logprobs, tokens.rollout.ref_logprobs, tokens.mask)
    return -jax.lax.stop_gradient(d)

  def keep(logprobs, old_logprobs, advantages):
    nothing = jnp.zeros_like(advantages)
    return divergence.binary_tv_keep(
      logprobs, old_logprobs, nothing, bound_low=0.2
    )

  return _prime(case, dtype, keep, kl_tau=1e-3, credit=credit)


def _open_instruct_kl(index):
  """estimate_kl: d bounded to 40 nats, four estimators by number."""

  def term(scores, rollout):
    d = penalties.log_ratio_to_reference(scores, rollout)
    d = jnp.clip(d, -40.0, 40.0)
    pair = (scores.logprobs, rollout.old_logprobs, rollout.mask)
    return (
      kl.k1,
      kl.k2,
      functools.partial(kl.k3, limit=40.0),
      lambda d: kl.times_ratio(kl.k1(d), _RAW(*pair)),
    )[index](d)

  return term


def open_instruct(case, dtype):
  options = case.params
  low, high = options["clip_lower"], options["clip_higher"]
  surrogate = _clipped(low, high)
  if case.name == "cispo":
    surrogate = lambda tokens: soft_clips.cispo_surrogate(
      tokens.logprobs,
      tokens.log_ratio,
      tokens.advantages,
      ratio_high=1.0 + high,
    )
  term = _open_instruct_kl(options["kl_estimator"])
  return evaluate(
    case,
    dtype,
    surrogate=surrogate,
    terms=[penalties.Penalty("kl", options["beta"], term)],
  )[0]


def areal(case, dtype):
  options = case.params
  low = options["eps_clip"]
  extras = {}
  if "rejection" in options:
    extras["rollout_is"] = _areal_weights(case, dtype, **options["rejection"])
  by_row = options.get("level") == "sequence"
  return evaluate(
    case,
    dtype,
    surrogate=_clipped(
      low, options.get("eps_clip_higher") or low, options.get("c_clip")
    ),
    old="old_logprobs(proximal)",
    ratio=_MEAN if by_row else _RAW,
    extras=extras,
  )[0]


def _areal_weights(case, dtype, *, level, action, metric, agg, upper, lower):
  """A weight of 0 stays in the denominator, as AReaL's rejection does.

  Its KL estimators have the policies the other way round, and bounds in nats.
  """
  pair = [
    case.array(name, dtype)
    for name in ("old_logprobs(proximal)", "rollout_logprobs")
  ]
  mask = case.array("mask") > 0
  by_row = level == "sequence"
  gap = rollout_correction.log_mismatch(*pair, mask)
  log_ratio = rollout_correction.log_weights(
    gap,
    mask,
    level="geometric" if by_row and metric == "ratio" else "token",
    limit=math.inf,
  )
  name = f"seq_{agg}" if by_row else "token"
  if metric == "ratio":
    rule = rejection.Rule(f"{name}_ratio", lower or 0.0, upper)
  elif metric == "kl_k1":
    low = 0.0 if lower is None else math.exp(lower)
    rule = rejection.Rule(f"{name}_k1", low, math.exp(upper))
  else:
    rule = rejection.Rule(f"{name}_{metric.removeprefix('kl_')}", high=upper)
  pair = pair if metric == "ratio" else pair[::-1]
  inside = rejection.rejection_mask(*pair, mask, rules=[rule])
  free = rollout_correction.truncated(log_ratio, high=math.inf)
  if action == "mask":
    return jnp.where(inside, free, 0.0)
  bounded = rollout_correction.truncated(
    log_ratio, low=lower or 0.0, high=upper
  )
  if not by_row:
    return jnp.broadcast_to(bounded, mask.shape)
  return jnp.where(inside, free, bounded)


def slime(case, dtype):
  """Its "clipped" is of every place, padding too."""
  options = case.params
  low, high = options["eps_clip"], options["eps_clip_high"]
  surrogate = _clipped(low, high, options["eps_clip_c"])
  if case.name == "cispo":
    surrogate = lambda tokens: soft_clips.cispo_surrogate(
      tokens.logprobs,
      tokens.log_ratio,
      tokens.advantages,
      ratio_low=1.0 - low,
      ratio_high=1.0 + high,
    )
  found, _ = evaluate(
    case, dtype, surrogate=surrogate, weigh=weighting.sequence_mean
  )
  everywhere = jnp.ones(case.inputs["mask"].shape, bool)
  pair = [case.array(name, dtype) for name in ("logprobs", "old_logprobs")]
  advantages = base.per_token(case.array("advantages", dtype), everywhere)
  tokens = types.Tokens(
    logprobs=pair[0],
    old_logprobs=pair[1],
    log_ratio=_RAW(*pair, everywhere),
    advantages=advantages,
    mask=everywhere,
    rollout=None,
  )
  clipped = surrogate(tokens)[1]
  sides = ("clip_fraction_low", "clip_fraction_high")
  return found | {"clipped": sum(clipped[side] for side in sides)}


ADAPTERS = {
  **{
    (OPEN_RLHF, "policy_loss", name): open_rlhf
    for name in ("ppo", "ppo_dual", "gspo")
  },
  **{
    (OPEN_RLHF, "policy_loss", f"ppo+{name}"): open_rlhf
    for name in ("tis", "icepop", "seq-mask-tis")
  },
  (PRIME, "policy_loss", "dppo_kl_default"): prime_dppo,
  (PRIME, "policy_loss", "dppo_tight"): prime_dppo,
  (PRIME, "policy_loss", "ipo"): prime_ipo,
  (PRIME, "policy_loss", "ref_kl"): prime_ref_kl,
  (OPEN_INSTRUCT, "policy_loss", "dapo"): open_instruct,
  (OPEN_INSTRUCT, "policy_loss", "cispo"): open_instruct,
  **{
    (AREAL, "policy_loss", name): areal
    for name in ("ppo", "dual_clip", "gspo", "decoupled")
  },
  (SLIME, "policy_loss", "ppo_dual"): slime,
  (SLIME, "policy_loss", "cispo"): slime,
}
