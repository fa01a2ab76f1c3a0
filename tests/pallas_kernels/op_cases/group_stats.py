"""Cases of group_stats: groups, segments by both matrices, options, masks."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import group_stats

# The last word forces the form that large K takes.
_OPTIONS = {
  "reference": {"impl": "reference"},
  "auto": {"impl": "auto"},
  "xla": {"impl": "xla"},
  "one_hot": {"impl": "xla", "form": "one_hot"},
}


def problem(dtype, *, size, rows=3, ids=None, mask=None, **maths):
  """Groups of `size`, or rows of `size` items with `ids` distinct ids."""
  rng = np.random.default_rng(size)
  x = rng.normal(size=(rows, size)) + 3.0
  x[0] = 0.9  # all equal
  masks = {
    None: None,
    "zeros": np.zeros(x.shape, bool),
    "ones": np.ones(x.shape, bool),
    "some": rng.random(x.shape) < 0.7,
  }
  counted = None if mask is None else jnp.asarray(masks[mask])
  codes = rng.integers(0, ids or 1, x.shape).astype(np.int32)

  def groups(impl, x):
    options = {"impl": "xla" if impl == "one_hot" else impl}
    flat = None if counted is None else counted.reshape(-1)
    found = group_stats.group_moments(x, size, mask=flat, **options)
    value = group_stats.group_normalize(x, size, mask=flat, **maths, **options)
    return value, found.mean, found.std(), found.count

  def segments(impl, x):
    options = _OPTIONS[impl] | {"num_segments": ids}
    args = x, jnp.asarray(codes), counted
    return (
      group_stats.segment_normalize(*args, **maths, **options),
      group_stats.segment_mean(*args, **options),
      group_stats.segment_std(*args, **options),
    )

  inputs = x if ids else x.reshape(-1)
  return op_cases.Problem(
    segments if ids else groups, (np.asarray(jnp.asarray(inputs, dtype)),)
  )


OP = op_cases.Op(
  name="group_stats",
  impls=("xla", "one_hot"),
  problem=problem,
  cases={
    "groups": {"size": 8},
    "pairs": {"size": 2, "rows": 5, "mask": "ones"},
    "groups_some": {"size": 16, "mask": "some", "eps": 1e-2},
    "groups_none": {"size": 4, "mask": "zeros"},
    "leave_one_out": {
      "size": 6,
      "mask": "some",
      "center": "leave_one_out",
      "scale": "leave_one_out",
    },
    "segments": {"size": 37, "ids": 5, "eps": 1e-2},
    "segments_some": {"size": 64, "ids": 9, "mask": "some", "eps": 1e-2},
    "segments_none": {"size": 9, "ids": 3, "mask": "zeros"},
    "segments_one": {"size": 12, "ids": 1, "ddof": 0, "scale": None},
    "segments_large": {"size": 1500, "ids": 40, "mask": "some", "eps": 1e-2},
  },
)
