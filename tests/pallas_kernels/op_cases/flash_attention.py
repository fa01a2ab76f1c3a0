"""Cases of flash_attention: patterns, padding, segments, heads, odd sizes."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import flash_attention

# Several blocks, and a last one that overhangs.
_OPTIONS = {
  "auto": {"impl": "auto"},
  "reference": {"impl": "reference"},
  "xla": {"impl": "xla", "block": 32},
  "interpret": {"impl": "interpret", "block": 128},
}


def problem(
  dtype,
  *,
  length=150,
  rows=2,
  heads=4,
  kv_heads=2,
  dim=16,
  hidden=None,
  prefix=0,
  branch=0,
  window=None,
  **knobs,
):
  """hidden "left" pads the prefix, "both" a row, "segments" has three."""
  rng = np.random.default_rng(length + dim)
  shapes = (rows, length, heads, dim), *[(rows, length, kv_heads, dim)] * 2
  inputs = [rng.normal(size=shape) for shape in shapes]
  place, row = np.arange(length)[None], np.arange(rows)[:, None]
  given = {
    None: {},
    "left": {"mask": place >= 7 * row},
    "both": {"mask": (place >= 7 * row) & (place < length - 9 * (1 - row))},
    "segments": {"segment_ids": (place >= 31).astype(np.int8) + (place >= 90)},
  }[hidden]
  if hidden == "segments":
    given["segment_ids"] = np.repeat(given["segment_ids"], rows, axis=0)

  def function(impl, q, k, v):
    out = flash_attention.flash_attention(
      *(q, k, v),
      pattern=flash_attention.Pattern(
        prefix=prefix, branch=branch, window=window
      ),
      **{name: jnp.asarray(x) for name, x in given.items()},
      **knobs,
      **_OPTIONS[impl],
    )
    return (out,)

  return op_cases.Problem(
    function, tuple(np.asarray(jnp.asarray(x, dtype)) for x in inputs)
  )


OP = op_cases.Op(
  name="flash_attention",
  impls=("xla", "interpret"),
  problem=problem,
  cases={
    "mha_window_softcap": {
      "hidden": "both",
      "kv_heads": 4,
      "dim": 20,
      "window": 40,
      "softcap": 1.5,
    },
    "segments_mqa": {"hidden": "segments", "kv_heads": 1, "scale": 0.3},
    "branches_window": {
      "length": 257,
      "hidden": "left",
      "prefix": 140,
      "branch": 39,
      "window": 45,
    },
  },
  # Weights and results are rounded to the dtype of q, k and v.
  tolerance=op_cases.TOLERANCE | {"bfloat16": (8e-3, 8e-3)},
)
