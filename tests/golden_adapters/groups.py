"""What the cases of several methods say in the same words."""

import jax.numpy as jnp
import numpy as np

_LOW = "clip_low", "eps_neg", "eps_low", "clip_ratio_low", "cliprange_low"
_HIGH = "clip_high", "eps_pos", "eps_high", "clip_ratio_high", "cliprange_high"


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


def has_logprobs(case) -> bool:
  """Whether a loss can be asked for."""
  return bool({"old_logprobs", "old_logp", "old_log_prob"} & case.inputs.keys())


def logprobs(case, dtype) -> tuple:
  """Of the policy now, and before the step; [N, T]."""
  return (
    _named(case, dtype, "logprobs", "logp", "log_prob", "new_logprobs"),
    _named(case, dtype, "old_logprobs", "old_logp", "old_log_prob"),
  )


def clips(case, low: float, high: float) -> tuple[float, float]:
  """How far the ratio may fall and rise: as the case says, else as given."""
  return _said(case, low, *_LOW), _said(case, high, *_HIGH)


def _said(case, default, *names):
  return next((case.params[n] for n in names if n in case.params), default)


def _named(case, dtype, *names):
  (name,) = (name for name in names if name in case.inputs)
  return case.array(name, dtype)
