"""RL2ML: weights of successes, credit of every baseline, moments by p."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import success_counts


def adapt(case, dtype):
  """Every output that the case asks for."""
  found = _by_rewards(case) if "rewards" in case.inputs else _by_rate(case)
  return {name: jnp.asarray(found[name], dtype) for name in case.outputs}


def _by_rewards(case):
  won = jnp.asarray(np.asarray(case.inputs["rewards"]) > 0.5)
  size = int(case.params.get("G", won.size))
  knobs = {"group_size": size, "q": case.params.get("q", 1.0)}
  groups = won.reshape(-1, size)
  total, rows = groups.sum(axis=1), jnp.full(len(groups), size)
  scale = total / size * success_counts.success_weight(total, rows, **knobs)
  found = {
    "beta_by_K": success_counts.success_weight(
      jnp.arange(1, size + 1), jnp.full(size, size), **knobs
    ),
    "group_update_scale": scale[0] if len(groups) == 1 else scale,
  }
  return found | {
    f"adv_{baseline}": success_counts.success_counted(
      won, baseline=baseline, **knobs
    )
    for baseline in success_counts.BASELINES
  }


def _by_rate(case):
  """A row of the file's table of moments."""
  known = {**case.params, **case.inputs}
  rate = jnp.atleast_1d(jnp.asarray(known["p"], float))
  knobs = {"group_size": int(known.get("G", 8)), "q": float(known["q"])}
  mean, square = success_counts.gradient_moments(
    rate, baseline=known.get("baseline", "loo"), **knobs
  )
  slope = success_counts.slope(rate, **knobs)
  found = {"E": mean, "w": slope, "var": square - mean**2}
  return {name: x.reshape(np.shape(known["p"])) for name, x in found.items()}
