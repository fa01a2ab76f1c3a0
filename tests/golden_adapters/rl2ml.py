"""RL2ML: the weights of successes and the credit of every baseline."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import success_counts


def adapt(case, dtype):
  """Every output that the case asks for."""
  won = jnp.asarray(np.asarray(case.inputs["rewards"]) > 0.5)
  size = int(case.params.get("G", won.size))
  knobs = {"group_size": size, "q": case.params.get("q", 1.0)}
  groups = won.reshape(-1, size)
  total, rows = groups.sum(axis=1), jnp.full(len(groups), size)
  counts = jnp.arange(1, size + 1)
  scale = total / size * success_counts.success_weight(total, rows, **knobs)
  found = {
    "beta_by_K": success_counts.success_weight(
      counts, jnp.full(size, size), **knobs
    ),
    "group_update_scale": scale[0] if len(groups) == 1 else scale,
  }
  found |= {
    f"adv_{baseline}": success_counts.success_counted(
      won, baseline=baseline, **knobs
    )
    for baseline in success_counts.BASELINES
  }
  return {
    name: jnp.asarray(found[name], dtype)
    for name in case.outputs
    if name in found
  }
