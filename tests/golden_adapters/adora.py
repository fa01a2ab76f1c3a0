"""ADORA: weights of groups, and the advantages that they multiply."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import group, length_advantage


def adapt(case, dtype):
  """Every output that the case asks for."""
  params, rewards = case.params, case.array("rewards", dtype)
  size, weighting = _group_size(case), _weighting(case)
  limit = 4094 if weighting == "attenuate_vlm" else 4054
  lengths = case.array("lengths", jnp.int32)
  factor = length_advantage.group_weights(
    rewards > params.get("correct_score", 0.5),
    lengths,
    lengths >= params.get("max_length", limit),
    group_size=size,
    weighting=weighting,
    attenuated=params.get("lambda", params.get("lam", 0.1)),
    amplified=params.get("w_amp", 2.0),
    tau=params.get("tau", 0.5),
  ).astype(dtype)
  if size == 1:  # the official code compares with 0 there
    advantages = rewards
  else:
    advantages = group.group_normalized(
      rewards, group_size=size, eps=params.get("eps", 1e-6)
    )
  found = {"weights": factor, "advantages": factor * advantages}
  return {
    name: _shaped(found[name], case, np.shape(expected))
    for name, expected in case.outputs.items()
  }


def _weighting(case) -> str:
  variant = str(case.params.get("variant", "amplify"))
  if "amplify" in variant or "paper" in variant:
    return "amplify"
  return "attenuate_vlm" if "vlm" in variant else "attenuate_llm"


def _shaped(values, case, shape):
  """[N], or as the file has it: [B], [B, G], [N, T] by the mask."""
  if len(shape) == 2 and "mask" in case.inputs:
    return jnp.where(case.inputs["mask"] > 0, values[:, None], 0.0)
  if shape == (len(values) // _group_size(case),):
    return values[:: _group_size(case)]
  return values.reshape(shape)


def _group_size(case) -> int:
  known = {**case.inputs, **case.params}
  for name in ("G", "group_size"):
    if name in known:
      return int(known[name])
  if "group" not in known:
    return len(known["rewards"])
  index = np.asarray(known["group"])
  return int((index == index[0]).sum())
