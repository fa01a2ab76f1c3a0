"""Cases of HDPO: both credits, and the two losses by the method itself."""

import jax.numpy as jnp

from jaxrl_llm import methods, types
from jaxrl_llm.advantages import economy
from jaxrl_llm.methods import base

_AGGREGATIONS = {
  "seq-mean-token-mean": "sequence_mean",
  "seq-mean-token-sum": "sequence_sum",
}


def adapt(case, dtype):
  """Of the outputs those that the case has."""
  params = case.params
  knobs = {
    "group_size": int(case.inputs.get("group_size", params.get("group_size"))),
    "eps": params.get("eps", 1e-6),
    "scale": params.get("norm_by_std", True),
  }
  tools = economy.tool_rewards(
    case.array("answer_correct", dtype) > 0,
    case.array("n_tool_calls", jnp.int32),
  ).astype(dtype)
  rewards = case.array("acc_reward", dtype)
  accuracy = economy.accuracy_credit(rewards, **knobs)
  economic = economy.economy_credit(tools, **knobs)
  found = {
    "tool_reward": tools,
    "acc_adv": accuracy,
    "tool_adv": economic,
    "tool_rows": (economic != 0).astype(dtype),
  }
  if "logprobs" in case.inputs:
    found |= _losses(case, dtype, accuracy, economic)
  return {name: found[name] for name in case.outputs}


def _losses(case, dtype, accuracy, economic):
  params = case.params
  named = [ours for name, ours in _AGGREGATIONS.items() if name in str(params)]
  method = methods.Hdpo(
    w_acc=params.get("w_acc", 1.0),
    w_tool=params.get("w_tool", 0.15),
    clip_low=params.get("clip_low", params.get("clip", 0.2)),
    clip_high=params.get("clip_high", params.get("clip", 0.2)),
    dual_clip=params.get("dual_clip", 3.0),
    aggregation=(named or ["token_mean"])[0],
  ).build()
  mask = case.array("mask", dtype) > 0
  rows = mask.shape[0]
  rollout = types.Rollout(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=case.array("old_logprobs", dtype),
    rewards=case.array("acc_reward", dtype),
    weights=jnp.ones(rows, dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
    extras={"tool_credit": economic},
  )
  credit = base.per_token(accuracy, mask)
  rollout = method.prepare(rollout, credit, None)
  loss, metrics = method.objective(
    types.Scores(logprobs=case.array("logprobs", dtype)),
    rollout,
    credit,
    method.weighting(mask, rollout.weights),
  )
  return {
    "loss": loss,
    "loss_acc": metrics["accuracy_loss"],
    "loss_tool": metrics["tool_loss"],
  }
