"""Cases of kind advantage and kl_in_reward."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import (
  baselines,
  batch,
  components,
  group,
  optimal_token,
  token,
)

TRL = "huggingface/trl"
VERL = "verl-project/verl"
NEMO = "NVIDIA-NeMo/RL"
PRIME = "PrimeIntellect-ai/prime-rl"


def _group_size(case) -> int:
  """G, from the case or from its groups of one size, side by side."""
  if "group_index" not in case.inputs:
    return case.params["G"]
  index = np.asarray(case.inputs["group_index"])
  size = int((index == index[0]).sum())
  np.testing.assert_array_equal(index, np.repeat(index[::size], size))
  return size


def _mask(case):
  return jnp.asarray(case.inputs["mask"] > 0)


def _spread(advantages, case, dtype) -> dict:
  """verl hands credit [N] to every token, as advantage and as return."""
  tokens = jnp.where(_mask(case), advantages[:, None], 0.0).astype(dtype)
  return {"advantages": tokens, "returns": tokens}


def _outcome(estimator, *names):
  """Adapter of (rewards, ..., group_size, eps) -> [N]."""

  def adapt(case, dtype):
    knobs = {to: case.params[of] for of, to in names if of in case.params}
    rewards = case.array("rewards", dtype)
    advantages = estimator(rewards, group_size=_group_size(case), **knobs)
    return _spread(advantages, case, dtype)

  return adapt


def _verl_grpo(case, dtype):
  if not case.params["norm_by_std"]:
    return _outcome(group.group_centred)(case, dtype)
  names = ("eps", "eps"), ("std_ddof", "ddof")
  return _outcome(group.group_normalized, *names)(case, dtype)


def _verl_gpg(case, dtype):
  advantages = baselines.rescaled_centred(
    case.array("rewards", dtype),
    group_size=_group_size(case),
    count="nonzero_reward",
    divisor=case.params.get("f_norm", 1.0),
  )
  return _spread(advantages, case, dtype)


def _verl_opo(case, dtype):
  advantages = baselines.length_weighted(
    case.array("rewards", dtype),
    _mask(case).sum(axis=1),
    group_size=_group_size(case),
  )
  return _spread(advantages, case, dtype)


def _verl_reinforce(case, dtype):
  mask, knobs = _mask(case), {"gamma": case.params.get("gamma", 1.0)}
  rewards = case.array("token_level_rewards", dtype)
  returns = token.discounted_returns(rewards, mask, **knobs)
  return {"advantages": token.whiten(returns, mask), "returns": returns}


def _verl_reinforce_baseline(case, dtype):
  centred = group.group_centred(
    case.array("rewards", dtype), group_size=_group_size(case)
  )
  mask = _mask(case)
  spread = jnp.broadcast_to(centred[:, None], mask.shape)
  advantages = token.whiten(spread, mask)
  return {"advantages": advantages, "returns": advantages}


def _verl_remax(case, dtype):
  mask = _mask(case)
  returns = token.discounted_returns(
    case.array("token_level_rewards", dtype), mask, carry=True
  )
  greedy = case.array("greedy_rewards", dtype)
  advantages = baselines.greedy_baseline(returns, greedy, mask)
  return {"advantages": advantages, "returns": returns}


def _verl_gdpo(case, dtype):
  parts = case.array("reward_components", dtype)
  sums = components.normalized_sum(
    parts,
    jnp.asarray(case.params["weights"], dtype),
    group_size=_group_size(case),
    eps=case.params["eps"],
  )
  mask = _mask(case)
  spread = jnp.broadcast_to(sums[:, None], mask.shape)
  return {"advantages": token.whiten(spread, mask)}


def _verl_optimal(estimator):
  def adapt(case, dtype):
    mask = _mask(case)
    rewards = case.array("token_level_rewards", dtype)
    weights = "rollout_is_weights"
    advantages = estimator(
      rewards,
      mask,
      case.array("old_logprobs", dtype),
      case.array("sum_pi_squared", dtype),
      case.array(weights, dtype) if weights in case.inputs else None,
      group_size=_group_size(case),
      zero_tail=case.params["handle_zero_tail"],
      eps=case.params["eps"],
    )
    returns = token.discounted_returns(rewards, mask, carry=True)
    return {"advantages": advantages, "returns": returns}

  return adapt


def _verl_kl_in_reward(case, dtype):
  scores = case.array("token_level_scores", dtype)
  logprobs = case.array("old_logprobs", dtype)
  reference = case.array("ref_logprobs", dtype)
  everywhere = jnp.ones(scores.shape, bool)
  return {
    "token_level_rewards": token.kl_penalized(
      scores, logprobs, reference, everywhere, beta=case.params["kl_coef"]
    )
  }


def _parts(case, dtype):
  """Components with their weights, and rewards that may be NaN."""
  parts = case.array("reward_components", dtype)
  factors = jnp.ones(parts.shape[1], dtype)
  if "weights" in case.inputs:
    factors = case.array("weights", dtype)
  rewards = components.combined(parts, factors)
  return parts, factors, rewards, (~jnp.isnan(rewards)).astype(dtype)


def _trl_grpo(case, dtype):
  parts, factors, rewards, scorable = _parts(case, dtype)
  size, scale = case.params["G"], case.params["scale_rewards"]
  ddof = case.params["std_ddof"]
  knobs = {"group_size": size, "ddof": ddof, "eps": case.params["eps"]}
  if case.params["multi_objective_aggregation"] == "normalize_then_sum":
    advantages = components.gdpo(parts, factors, scorable, **knobs)
    sums = components.normalized_sum(parts, factors, scorable, **knobs)
    return _with_std(advantages, batch.batch_std(sums, scorable, ddof=ddof))
  if scale == "batch":
    advantages = batch.batch_normalized(rewards, scorable, **knobs)
    return _with_std(advantages, batch.batch_std(rewards, scorable, ddof=ddof))
  groups = group.from_group_mean(rewards, scorable, group_size=size)
  deviation = jnp.repeat(group.std(groups, ddof=ddof)[:, 0], size)
  if scale == "none":
    advantages = group.group_centred(rewards, scorable, group_size=size)
  else:
    advantages = group.group_normalized(rewards, scorable, **knobs)
  return _with_std(advantages, deviation)


def _with_std(advantages, deviation) -> dict:
  zero = jnp.broadcast_to(deviation == 0, advantages.shape)
  return {"advantages": advantages, "is_std_zero": zero}


def _trl_rloo(case, dtype):
  _, _, rewards, scorable = _parts(case, dtype)
  if case.params["beta"]:
    logprobs = case.array("old_logprobs", dtype)
    reference = case.array("ref_logprobs", dtype)
    rewards = token.kl_penalized_outcome(
      rewards, logprobs, reference, _mask(case), beta=case.params["beta"]
    )
  advantages = group.leave_one_out(
    rewards, scorable, group_size=case.params["G"]
  )
  if case.params["normalize_advantages"]:
    advantages = batch.batch_scaled(advantages, scorable)
  return {"advantages": advantages}


def _nemo_grpo(case, dtype):
  names = {
    (True, True): group.leave_one_out_normalized,
    (True, False): group.leave_one_out,
    (False, True): group.group_normalized,
    (False, False): group.group_centred,
  }
  normalize = case.params["normalize"]
  estimator = names[case.params["leave_one_out"], normalize]
  knobs = {"eps": case.params["eps"]} if normalize else {}
  rewards = case.array("rewards", dtype)
  return {
    "advantages": estimator(rewards, group_size=case.params["G"], **knobs)
  }


def _nemo_reinforce(case, dtype):
  """NeMo does not mask what it returns: the moments are ours, spread out."""
  rewards, mask = case.array("rewards", dtype), _mask(case)
  if case.params["minus_baseline"]:
    rewards = group.group_centred(rewards, group_size=case.params["G"])
  spread = jnp.broadcast_to(rewards[:, None], mask.shape)
  mean, variance = token.moments(spread, mask, ddof=0)
  whitened = token.whiten(spread, mask, ddof=0, variance="at_least")
  everywhere = (spread - mean) / jnp.sqrt(jnp.maximum(variance, 1e-8))
  return {"advantages": jnp.where(mask, whitened, everywhere)}


def _prime(estimator):
  return lambda case, dtype: {
    "advantages": estimator(
      case.array("rewards", dtype), group_size=case.params["G"]
    )
  }


_PASSK = (("norm_by_std", "normalize"), ("eps", "eps"), ("std_ddof", "ddof"))
_OPTIMAL = optimal_token.optimal_token_baseline
_TIR_OPTIMAL = optimal_token.tir_optimal_token_baseline

ADAPTERS = {
  (TRL, "advantage", "grpo"): _trl_grpo,
  (TRL, "advantage", "rloo"): _trl_rloo,
  (NEMO, "advantage", "grpo"): _nemo_grpo,
  (NEMO, "advantage", "reinforce_plus_plus"): _nemo_reinforce,
  (PRIME, "advantage", "grpo"): _prime(group.group_centred),
  (PRIME, "advantage", "max_rl"): _prime(baselines.mean_scaled),
  (VERL, "kl_in_reward", "compute_rewards"): _verl_kl_in_reward,
} | {
  (VERL, "advantage", name): adapter
  for name, adapter in {
    "grpo": _verl_grpo,
    "grpo_vectorized": _verl_grpo,
    "grpo_passk": _outcome(baselines.best_minus_second, *_PASSK),
    "rloo": _outcome(group.leave_one_out),
    "rloo_vectorized": _outcome(group.leave_one_out),
    "gpg": _verl_gpg,
    "opo": _verl_opo,
    "reinforce_plus_plus": _verl_reinforce,
    "reinforce_plus_plus_baseline": _verl_reinforce_baseline,
    "remax": _verl_remax,
    "gdpo": _verl_gdpo,
    "optimal_token_baseline": _verl_optimal(_OPTIMAL),
    "tir_optimal_token_baseline": _verl_optimal(_TIR_OPTIMAL),
  }.items()
}
