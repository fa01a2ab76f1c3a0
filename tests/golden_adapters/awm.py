"""Cases of AWM: advantages of prompts of any size, losses of any draws."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import batch, group
from jaxrl_llm.methods import awm
from jaxrl_llm.objectives import matching


def adapt(case, dtype):
  """Whichever the case has."""
  if "rewards" in case.inputs:
    return _advantages(case, dtype)
  return _loss(case, dtype)


def _advantages(case, dtype):
  """Smaller prompts are filled up with rows of weight 0."""
  _, prompt = np.unique(np.asarray(case.inputs["prompts"]), return_inverse=True)
  size = max(2, np.bincount(prompt).max())
  member = [int((prompt[:i] == p).sum()) for i, p in enumerate(prompt)]
  places = prompt * size + np.asarray(member)
  rewards = np.zeros((prompt.max() + 1) * size)
  rewards[places] = case.inputs["rewards"]
  weights = np.isin(np.arange(len(rewards)), places)
  arrays = jnp.asarray(rewards, dtype), jnp.asarray(weights, dtype)
  knobs = {"group_size": int(size), "ddof": 0, "eps": 1e-4}
  found = {
    "per_prompt_std": group.group_normalized(*arrays, **knobs)[places],
    "global_std": batch.batch_normalized(*arrays, **knobs)[places],
  }
  return {name: found[name] for name in case.outputs}


def _loss(case, dtype):
  params = case.params
  old = case.array("old_log_score", dtype)
  advantages = awm.clipped_and_scaled(
    case.array("advantages", dtype),
    bound=params.get("adv_clip", 5.0),
    to=params.get("advantage_max", 1.0),
  )
  form = "sum_first" if "sum_first" in params.values() else "exp_first"

  def loss(scores):
    log_ratio = (scores - old).reshape(-1, len(advantages))
    losses, _ = matching.advantage_weighted_matching(
      log_ratio, advantages, clip=params.get("clip_range", 1.0), form=form
    )
    return losses.mean()

  value, grads = jax.value_and_grad(loss)(case.array("log_score", dtype))
  found = {"loss": value, "grad_log_score": grads}
  return {name: found[name] for name in case.outputs}
