"""Cases of PEARL: levels, z-scores of each reward, their sum, rescaled."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_adapters import groups
from jaxrl_llm.advantages import components, group


def adapt(case, dtype) -> dict:
  """What the case asks for, by its names."""
  said = case.params
  parts = case.array("reward_components", dtype)
  factors = jnp.asarray(said.get("weights", np.ones(parts.shape[1])), dtype)
  edges = _lists(said["edges"]) if "edges" in said else components.thirds(parts)
  levels = _lists(said.get("levels", [0.0, 0.5, 1.0]))
  knobs = {
    "group_size": groups.group_size(case),
    "ddof": said.get("adv_std_ddof", 1),
    "eps": said.get("adv_eps", 1e-6),
  }
  snapped = components.discretized(parts, edges, levels)
  each = jax.vmap(
    lambda x: group.group_normalized(x, ~jnp.isnan(x), **knobs),
    in_axes=1,
    out_axes=1,
  )
  total = components.normalized_sum(snapped, factors, **knobs)
  return groups.asked(
    case,
    {
      "discrete": snapped,
      "adv_per_dim": each(snapped),
      "adv_sum": total,
      "advantages": total,
      "adv_batch_normalised": components.gdpo(snapped, factors, **knobs),
    },
  )


def _lists(values):
  """One list for all becomes the only one."""
  return values if np.ndim(values[0]) else [values]
