"""Cases of BNPO: the advantage of one reward, or of several components."""

import numpy as np

from golden_adapters import groups
from jaxrl_llm.advantages import beta


def adapt(case, dtype) -> dict:
  """Advantages [N]."""
  size = groups.group_size(case)
  low, high = (
    np.ravel(case.params.get(name, default)).astype(float)
    for name, default in (("min_value", 0.0), ("max_value", 1.0))
  )
  ranges = tuple(zip(*np.broadcast_arrays(low, high), strict=True))
  if "reward_components" in case.inputs:
    parts = case.array("reward_components", dtype)
    advantages = beta.beta_normalized_components(
      parts, group_size=size, ranges=ranges
    )
  else:
    ((low, high),) = ranges
    advantages = beta.beta_normalized(
      case.array("rewards", dtype),
      group_size=size,
      min_value=low,
      max_value=high,
    )
  return groups.asked(case, {"advantages": advantages})
