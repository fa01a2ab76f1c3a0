"""COPO: both advantages and what they are made of, and the blended loss."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.advantages import consistency
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.testing import rollouts

_WEIGHTINGS = {
  "seq-mean-token-mean": weighting.sequence_mean,
  "seq-mean-token-sum": weighting.sequence_sum,
  "token-mean": weighting.token_mean,
}


def adapt(case, dtype):
  """Every output that the case asks for."""
  params, rewards = case.params, case.array("rewards", dtype)
  size = int(case.inputs.get("group_size", params.get("group_size", 4)))
  eps = {"eps": params.get("eps", 1e-6)}
  normalize = params.get("norm_by_std", params.get("normalize", True))
  knobs = {"group_size": size, "normalize": normalize, **eps}
  answers = np.asarray(case.inputs["answers"])
  ids = jnp.asarray(np.unique(answers, return_inverse=True)[1], jnp.int32)
  entropy = consistency.answer_entropy(ids, group_size=size).astype(dtype)
  earned = consistency.prompt_rewards(
    rewards,
    entropy,
    group_size=size,
    consistency=params.get("use_consistency_coef", False),
  )
  local = consistency.within_prompt(rewards, **knobs)
  between = consistency.between_prompts(earned, **knobs)
  blend = {"steepness": params.get("k", 5.0), "middle": params.get("b", 1.0)}
  found = {
    "local_adv": local,
    "global_adv": between,
    "answer_entropy_bits": entropy,
    "global_reward": earned,
    # As the file has it: the sigmoid, whatever the mode makes of it.
    "blend_weight": consistency.local_share(
      entropy, rewards, local, blend="only_soft", **blend
    ),
  }
  if "loss" in case.outputs:
    share = consistency.local_share(
      entropy,
      rewards,
      local,
      blend=str(params["blend"]).replace("-", "_"),
      **blend,
    )
    found["loss"] = _loss(case, dtype, local, between, share)
  return {name: found[name] for name in case.outputs}


def _loss(case, dtype, local, between, share):
  params, mask = case.params, jnp.asarray(case.inputs["mask"] > 0)

  def surrogate(tokens):
    pair = (
      surrogates.dual_clip_surrogate(
        tokens.log_ratio,
        base.per_token(credit, mask),
        clip_low=params.get("eps_low", 0.2),
        clip_high=params.get("eps_high", 0.2),
        dual_clip=params.get("dual_clip", 3.0),
      )
      for credit in (local, between)
    )
    return surrogates.blended(share[:, None], *pair)

  rollout = rollouts.make_rollout(groups=len(local)).replace(
    mask=mask, old_logprobs=case.array("old_logprobs", dtype)
  )
  weigh = _WEIGHTINGS[params.get("agg", "seq-mean-token-mean")]
  weights = weigh(mask, jnp.ones(len(local), dtype))
  return policy.policy_objective(surrogate=surrogate)(
    types.Scores(logprobs=case.array("logprobs", dtype)),
    rollout,
    base.per_token(local, mask),
    weights,
  )[0]
