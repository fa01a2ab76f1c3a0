"""CANON: advantages by entropy and by length, and its schedules of mu."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group, halves
from jaxrl_llm.methods import canon
from jaxrl_llm.transforms import schedules


def adapt(case, dtype):
  """Every output that the case asks for."""
  return {
    name: jnp.asarray(_output(name, case, dtype), dtype)
    for name in case.outputs
  }


def _output(name, case, dtype):
  if "rewards" not in case.inputs:
    return _schedule(name, case)
  rewards = case.array("rewards", dtype)
  size = int(case.inputs.get("group_size", case.params.get("group_size", 4)))
  length = case.params.get("max_length", 1)
  if name == "dr_grpo":
    if size == 1:
      return rewards / length
    return group.group_centred(rewards, group_size=size) / length
  by_length = "length" in name
  mask = jnp.asarray(case.inputs["mask"] > 0)
  if by_length:
    metric = mask.sum(axis=1).astype(dtype)
  else:
    metric = halves.mean_over_tokens(case.array("entropy", dtype), mask)
  credit = halves.conditional_advantages(
    rewards,
    metric,
    group_size=size,
    mu=_mu(case, rewards),
    alpha=case.params.get("alpha", 1.0),
    beta=case.params.get("beta", 0.0),
    scaled="upper" if by_length else "lower",
  )
  credit = credit / length
  shape = np.shape(case.outputs[name])
  return credit if len(shape) == 1 else credit[:, None] * mask


def _mu(case, rewards):
  schedule = str(case.params.get("schedule", "none"))
  if schedule.startswith("accuracy"):
    mean = rewards.mean()
    reverse = "1 -" in schedule or "inter first" in schedule
    return 1.0 - mean if reverse else mean
  if schedule.startswith("cosine"):
    return 1.0 - _intra(schedule, case)
  return case.params.get("mu", 1.0)


def _schedule(name, case):
  """Of a function of the step alone: of intra, unless it is called mu."""
  found = _intra(name, case)
  return 1.0 - found if name.startswith("mu") else found


def _intra(name, case):
  known = {**case.params, **case.inputs}
  get = lambda default, *names: next(  # noqa: E731
    (known[key] for key in names if key in known), default
  )
  step = np.asarray(get(0, "steps", "step", "global_step"))
  warmup = int(get(30, "warmup", "warmup_steps", "W"))
  total = int(get(150, "total", "total_steps", "S"))
  cycle = (total - warmup) // int(get(3, "cycles", "num_cycles"))
  text = f"{name} {known.get('order', '')} {known.get('schedule', '')}"
  text = text.replace("-", "_").replace(" ", "_")
  inter_first = "first_inter" in text or "inter_first" in text
  order = "inter_first" if inter_first else "intra_first"
  high, low = canon.COSINE[order]
  plain = {"hi", "lo", "high", "low", "max_value", "min_value"} & known.keys()
  found = schedules.cosine_restart(
    step.astype(int),
    high=float(get(high, "hi", "high", "max_value")),
    low=float(get(low, "lo", "low", "min_value")),
    warmup=warmup,
    cycle=cycle,
  )
  return 1.0 - found if inter_first and not plain else found
