"""Cases of BNPO: the advantage of one reward, or of several components."""

import jax.numpy as jnp
import numpy as np

from golden_adapters import groups
from jaxrl_llm.advantages import beta


def adapt(case, dtype) -> dict:
  """Advantages [N], and the density of one reward."""
  size = groups.group_size(case)
  low = _each(case.params.get("min_value", 0.0))
  high = _each(case.params.get("max_value", 1.0))
  ranges = tuple(zip(*np.broadcast_arrays(low, high), strict=True))
  names = {"reward_components", "components"} & case.inputs.keys()
  if names:
    parts = _columns(case.inputs[names.pop()])
    advantages = beta.beta_normalized_components(
      jnp.asarray(parts, dtype), group_size=size, ranges=ranges
    )
    return groups.asked(case, {"advantages": advantages})
  ((low, high),) = ranges
  rewards = case.array("rewards", dtype)
  advantages = beta.beta_normalized(
    rewards, group_size=size, min_value=low, max_value=high
  )
  rates = (rewards.reshape(-1, size).mean(axis=1) - low) / (high - low)
  density = beta.fitted(rates)
  found = {
    "advantages": advantages,
    "alpha": 1 + density.size * density.mode,
    "beta": 1 + density.size * (1 - density.mode),
  }
  return groups.asked(case, found)


def _each(bound):
  """One number, or one for each component."""
  values = list(bound.values()) if isinstance(bound, dict) else bound
  return np.ravel(values).astype(float)


def _columns(parts):
  """[N, K], also of {name: [N]}."""
  if isinstance(parts, dict):
    return np.stack([np.asarray(x, float) for x in parts.values()], axis=1)
  return parts
