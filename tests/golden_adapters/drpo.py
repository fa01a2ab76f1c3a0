"""Cases of DRPO: the whole method on a batch of groups of any sizes."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.testing import contract


def adapt(case, dtype):
  """Loss, KL and gradient, whichever the case has."""
  params = case.params
  config = methods.Drpo(
    lam=params.get("lambda", 0.1),
    tau=params.get("tau", 10.0),
    beta=params.get("beta", 1e3),
    delta=params.get("delta", 1e-4),
    kl_type=params.get("kl_type", "kl"),
    max_length=params.get("L_max"),
    threshold=None,
    report="code",
  )
  places, rollout = _in_groups(case, dtype)
  new = _placed(case.inputs["logprobs"], places, len(rollout.mask))
  loss, metrics, grads = contract.evaluate(
    config.build(), types.Scores(logprobs=jnp.asarray(new, dtype)), rollout
  )
  found = {
    "loss": loss,
    "kl": metrics["old_kl"],
    "grad_logprobs": np.asarray(grads.logprobs)[places],
  }
  return {name: found[name] for name in case.outputs}


def _in_groups(case, dtype):
  """Row of each completion among groups of one size, and the rollout.

  Rows that fill a smaller group up have weight 0.
  """
  ids = np.asarray(case.inputs["group"], int)
  names, group = np.unique(ids, return_inverse=True)
  size = max(2, np.bincount(group).max())
  member = [int((group[:i] == g).sum()) for i, g in enumerate(group)]
  places = group * size + np.asarray(member)
  rows = len(names) * size

  def array(name):
    return jnp.asarray(_placed(case.inputs[name], places, rows), dtype)

  mask = array("mask") > 0
  rollout = types.Rollout(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_mask=jnp.ones((rows, 1), bool),
    completions=jnp.zeros(mask.shape, jnp.int32),
    mask=mask,
    old_logprobs=array("old_logprobs"),
    rewards=array("rewards"),
    weights=jnp.asarray(np.isin(np.arange(rows), places), dtype),
    finish_reason=jnp.zeros(rows, jnp.int32),
    group_size=int(size),
  )
  return places, rollout


def _placed(values, places, rows):
  values = np.asarray(values)
  out = np.zeros((rows, *values.shape[1:]))
  out[places] = values
  return out
