"""Cases of OCC: both calibrations, the loss of each, and its gradient."""

import jax
import jax.numpy as jnp

from jaxrl_llm import methods, types
from jaxrl_llm.objectives import calibration, weighting

_AGGREGATIONS = {
  "token-mean": weighting.token_mean,
  "seq-mean-token-sum": weighting.sequence_sum,
  "seq-mean-token-mean": weighting.sequence_mean,
}


def adapt(case, dtype):
  """The code's calibration is over all entries; its modules [K, N, T]."""
  mask = jnp.asarray(case.inputs["mask"] > 0)
  main, old, credit = (
    case.array(name, dtype)
    for name in ("logprobs", "old_logprobs", "advantages")
  )
  ahead = case.array("mtp_logprobs", dtype)
  single = ahead.ndim == 2
  ahead = ahead[None] if single else ahead
  lam0 = case.params.get("mtp_loss_scaling_factor", 1.0) / len(ahead)

  def coefficients(form, mask):
    found = [form(main, each, old, mask, lam0=lam0) for each in ahead]
    return jnp.stack(found)

  code = coefficients(calibration.elementwise_coefficient, mask | True)
  paper = coefficients(calibration.inner_coefficient, mask)
  knobs = _objective(case.params), _rollout(old, mask), credit, _weights(case)

  def total(main, ahead):
    parts = [
      _loss(*knobs, main, x, k) for x, k in zip(ahead, code, strict=True)
    ]
    policy = parts[0]["policy_loss"]
    module = sum(part["mtp_loss"] for part in parts)
    return policy + module, (policy, module)

  (loss, (policy, module)), grads = jax.value_and_grad(
    total, argnums=(0, 1), has_aux=True
  )(main, ahead)
  own = sum(
    _loss(*knobs, main, x, k)["mtp_loss"]
    for x, k in zip(ahead, paper, strict=True)
  )
  found = {
    "pg_loss": policy,
    "code_lambda_elementwise_mean_all_positions": code[0] if single else code,
    "code_mtp_loss": module,
    "code_total": loss,
    "code_grad_logprobs": grads[0],
    "code_grad_mtp_logprobs": grads[1][0] if single else grads[1],
    "paper_lambda_masked_inner_product": paper[0] if single else paper,
    "paper_form_mtp_loss": own,
  }
  return {name: found[name] for name in case.outputs}


def _objective(params):
  config = methods.Occ(
    mtp="policy",
    warmup=0,
    clip_low=params.get("clip_low", 0.2),
    clip_high=params.get("clip_high", 0.28),
    dual_clip=params.get("dual_clip_c", 10.0),
  )
  return config.build().objective


def _weights(case):
  return _AGGREGATIONS[case.params.get("aggregation", "token-mean")]


def _rollout(old, mask):
  rows = mask.shape[0]
  return types.Rollout(
    prompts=jnp.zeros((rows, 2), jnp.int32),
    prompt_mask=jnp.ones((rows, 2), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=old,
    rewards=jnp.zeros(rows, old.dtype),
    weights=jnp.ones(rows, old.dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
  )


def _loss(objective, rollout, credit, weights, main, ahead, lam):
  """Differentiable parts of the loss: those that metrics name are constants."""
  extras = {"mtp_lam": lam, "mtp_ce": jnp.zeros_like(lam)}
  shares = weights(rollout.mask, rollout.weights)

  def loss(lam, ahead):
    return objective(
      types.Scores(logprobs=main, mtp_logprobs=ahead),
      rollout.replace(extras=extras | {"mtp_lam": lam}),
      credit,
      shares,
    )[0]

  policy = loss(jnp.zeros_like(lam), ahead)
  return {"policy_loss": policy, "mtp_loss": loss(lam, ahead) - policy}
