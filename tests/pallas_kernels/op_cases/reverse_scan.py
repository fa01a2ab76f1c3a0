"""Cases of reverse_scan: ragged sizes, init, decays of 0 and 1, holes."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import reverse_scan


def problem(dtype, *, rows, tokens, decay="mixed", init=False):
  """decay "holes" is that of a mask: 0.99 * 0.95 on it, 1 and x 0 elsewhere."""
  rng = np.random.default_rng(rows + tokens)
  shape = rows, tokens
  x = rng.normal(size=shape)
  if decay == "mixed":
    decays = rng.uniform(-0.5, 1, shape) * (rng.random(shape) < 0.9)
  elif decay == "holes":
    mask = rng.random(shape) < 0.7
    decays, x = np.where(mask, 0.99 * 0.95, 1.0), np.where(mask, x, 0)
  else:
    decays = np.full(shape, decay)
  inputs = [decays, x] + [rng.normal(size=rows)] * init

  def function(impl, decay, x, init=None):
    return (reverse_scan.reverse_scan(decay, x, init=init, impl=impl),)

  return op_cases.Problem(
    function, tuple(np.asarray(jnp.asarray(x, dtype)) for x in inputs)
  )


OP = op_cases.Op(
  name="reverse_scan",
  impls=("xla", "interpret"),
  problem=problem,
  cases={
    "one": {"rows": 1, "tokens": 1, "init": True},
    "five": {"rows": 5, "tokens": 5},
    "under_a_group": {"rows": 16, "tokens": 127, "init": True},
    "a_group": {"rows": 8, "tokens": 128, "decay": "holes"},
    "over_a_group": {"rows": 127, "tokens": 129, "decay": 1.0, "init": True},
    "tiles": {"rows": 300, "tokens": 300, "decay": "holes", "init": True},
    "time_tiles": {"rows": 3, "tokens": 600},
    "zeros": {"rows": 128, "tokens": 5, "decay": 0.0, "init": True},
    "ones": {"rows": 129, "tokens": 300, "decay": 1.0},
  },
)
