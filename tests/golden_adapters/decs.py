"""Token rewards, advantages and the controller of the official code."""

import re

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import positions
from jaxrl_llm.rollout import curriculum


def adapt(case, dtype):
  if "nrp_ratio_per_step" in case.inputs:
    return {name: _kappas(case, name) for name in case.outputs}
  params = case.params
  mask = jnp.asarray(case.inputs["mask"], bool)
  rewards = positions.decoupled_rewards(
    case.array("rewards", dtype),
    case.array("redundant_start", jnp.int32),
    case.array("redundant_end", jnp.int32),
    mask,
    beta_len=params.get("beta_len", 0.1),
    max_length=params.get("L_max"),
    redundant_base=params.get("redundant_base", "code"),
  )
  advantages = positions.position_normalized(
    rewards,
    mask,
    group_size=int(case.inputs["group_size"]),
    eps=params.get("eps", 1e-6),
  )
  found = {"token_rewards": rewards, "advantages": advantages}
  return {name: found[name] for name in case.outputs}


def _kappas(case, name):
  """kappa after each step, clipped where the output's name says so."""
  limit = re.search(r"kappa_max_(\d+)p(\d+)", name)
  clip = "unclipped" not in name
  high = float(f"{limit[1]}.{limit[2]}") if limit else 0.95
  low = 0.0 if clip else -np.inf
  kappa = case.params.get("kappa0", 0.0)
  before = case.params.get("prev_ratio0", 0.5)
  found = []
  for ratio in case.inputs["nrp_ratio_per_step"]:
    kappa = curriculum.next_kappa(
      kappa,
      float(ratio),
      before,
      rate=case.params.get("lr", 0.2),
      low=low,
      high=high if clip else np.inf,
    )
    before = float(ratio)
    found.append(kappa)
  return found
