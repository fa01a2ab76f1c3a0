"""What the cases of several methods say in the same words."""

import jax.numpy as jnp
import numpy as np


def group_size(case) -> int:
  """G: as the case says it, or from the ids of groups side by side."""
  said = {"group_size", "G"} & (case.inputs.keys() | case.params.keys())
  if said:
    return int((dict(case.inputs) | dict(case.params))[said.pop()])
  names = {"group", "groups", "group_index"} & case.inputs.keys()
  index = np.asarray(case.inputs[names.pop()])
  size = int((index == index[0]).sum())
  np.testing.assert_array_equal(index, np.repeat(index[::size], size))
  return size


def mask(case):
  """[N, T] bool."""
  return jnp.asarray(case.inputs["mask"] > 0)


def asked(case, found: dict) -> dict:
  """Of what we have, the outputs that the case has."""
  return {name: found[name] for name in case.outputs if name in found}
