"""Cases of kind kl, kl_penalty, kl_controller and agg_loss."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_llm.objectives import kl, ratios, weighting
from jaxrl_llm.transforms import coefficients

_VERL = "verl-project/verl"
_SLIME = "THUDM/slime"
_OPENRLHF = "OpenRLHF/OpenRLHF"
_OPEN_INSTRUCT = "allenai/open-instruct"

# verl and slime without a bound of their own in k1, k2 and abs.
_NAMES = {
  "k1": kl.k1,
  "k2": kl.k2,
  "k3": kl.k3,
  "abs": kl.absolute,
  "low_var_kl": kl.low_var_kl,
}
_VERL_NAMES = _NAMES | {"kl": kl.k1, "mse": kl.k2, "k3": kl.low_var_kl}


def _verl_penalty(case, dtype):
  mask = case.array("mask", bool)
  ref = case.array("ref_logprobs", dtype)
  estimator = _VERL_NAMES[case.name.removesuffix("+")]

  def values(logprobs):
    found = estimator(logprobs - ref)
    if case.name.endswith("+"):
      found = kl.straight_through(found, kl.k2(logprobs - ref))
    return found

  logprobs = case.array("logprobs", dtype)
  grad = jax.grad(lambda x: jnp.where(mask, values(x), 0.0).sum())(logprobs)
  return {"kl": values(logprobs), "grad_of_masked_sum": grad}


def _verl_controller(case, dtype):
  coef = jnp.asarray(case.params["init"], dtype)
  found = []
  for measured in case.array("current_kl", dtype):
    coef = coefficients.next_kl_coef(
      coef,
      measured,
      case.params["n_steps"],
      target=case.params["target"],
      horizon=case.params["horizon"],
    )
    found.append(coef)
  return {"coef_after_each": jnp.stack(found)}


def _verl_aggregation(weigh, scale, case, dtype):
  """verl's loss of one of dp_size parts of a batch, if it is told of them."""
  params, mask = case.params, case.array("mask", bool)
  loss = case.array("loss_mat", dtype)
  rows = jnp.ones(mask.shape[0], dtype)
  weights = weigh(mask, rows, **scale(params))
  return {"loss": (weights * loss).sum() * params.get("dp_size", 1)}


def _tokens(params):
  return {"tokens": params.get("batch_num_tokens")}


def _rows(params):
  return {"rows": params.get("global_batch_size"), "count_empty_rows": False}


def _norm(params):
  return _rows(params) | {"length": params.get("loss_scale_factor")}


def _openrlhf(case, dtype):
  logprobs, ref = (case.array(k, dtype) for k in ("logprobs", "ref_logprobs"))
  return {"kl": kl.bounded(_NAMES[case.name](logprobs - ref))}


def _slime(case, dtype):
  """Unbounded k3, perhaps weighed; low_var_kl is that, bounded."""
  logprobs, ref = (case.array(k, dtype) for k in ("logprobs", "ref_logprobs"))
  low_var = case.name == "low_var_kl"
  values = (kl.k3 if low_var else _NAMES[case.name])(logprobs - ref)
  if case.params.get("times_ratio"):
    old = case.array("old_logprobs", dtype)
    values = kl.times_ratio(values, logprobs - old)
  return {"kl": kl.bounded(values) if low_var else values}


def _four(case, dtype):
  """open-instruct: k1, k2, k3 and k1 times the ratio, d within 40 nats."""
  logprobs, ref, old = (
    case.array(k, dtype) for k in ("logprobs", "ref_logprobs", "old_logprobs")
  )
  everywhere = jnp.ones(logprobs.shape, bool)
  d = ratios.token_log_ratio(logprobs, ref, everywhere, limit=40.0)
  estimates = (
    kl.k1(d),
    kl.k2(d),
    kl.k3(d, limit=40.0),
    kl.times_ratio(kl.k1(d), logprobs - old),
  )
  return {f"kl{index}": values for index, values in enumerate(estimates)}


_MODES = {
  "token-mean": (weighting.token_mean, _tokens),
  "token-sum": (weighting.token_sum, lambda params: {}),
  "seq-mean-token-sum": (weighting.sequence_sum, _rows),
  "seq-mean-token-mean": (weighting.sequence_mean, _rows),
  "seq-mean-token-sum-norm": (weighting.fixed_length, _norm),
}

ADAPTERS = (
  {
    (_VERL, "agg_loss", name): functools.partial(_verl_aggregation, *how)
    for name, how in _MODES.items()
  }
  | {
    (_VERL, "kl_penalty", name + plus): _verl_penalty
    for name in _VERL_NAMES
    for plus in ("", "+")
  }
  | {
    (library, "kl", name): adapter
    for library, adapter in ((_OPENRLHF, _openrlhf), (_SLIME, _slime))
    for name in _NAMES
  }
  | {
    (_VERL, "kl_controller", "adaptive"): _verl_controller,
    (_OPEN_INSTRUCT, "kl", "four_estimators"): _four,
  }
)
