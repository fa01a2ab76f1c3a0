"""Cases of sampling: ragged vocabularies, truncations, both methods."""

import jax
import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import sampling


def problem(dtype, *, vocab, rows=24, temperature=None, **knobs):
  """Random logits, a few of them banned; knobs are keywords of sample."""
  rng = np.random.default_rng(vocab)
  logits = 2 * rng.normal(size=(rows, vocab))
  logits[:, rng.random(vocab) < 0.1] = -np.inf
  logits[:, vocab // 2] = 1
  logits = np.asarray(jnp.asarray(logits, dtype))
  uniforms = rng.random((rows, 2), dtype=np.float32)
  if temperature == "rows":
    # Powers of two: their inverse is exact in every dtype.
    temperature = np.float32([0.5, 1, 2, 4] * (rows // 4))

  def function(impl):
    exact = np.float64 if impl == "reference" else logits.dtype
    # What is closed over is constant, and XLA folds constants entry by entry.
    values, noise, ids = jax.lax.optimization_barrier(
      (logits.astype(exact), uniforms, np.arange(rows))
    )
    if knobs.get("method") == "gumbel":
      noise = sampling.row_keys(jax.random.key(3), ids)
    out = sampling.sample(
      values,
      noise,
      temperature=1.0 if temperature is None else temperature,
      impl=impl,
      **knobs,
    )
    return out.token.astype(jnp.float32), *out[1:]

  return op_cases.Problem(function, ())


_ALL = {"top_k": 40, "top_p": 0.9, "min_p": 0.02}

OP = op_cases.Op(
  name="sampling",
  impls=("xla",),
  problem=problem,
  cases={
    "plain": {"vocab": 1003},
    "one": {"vocab": 1},
    "block": {"vocab": 128, "temperature": "rows"},
    "top_k": {"vocab": 1003, "top_k": 7},
    "top_p": {"vocab": 1024, "top_p": 0.8},
    "large": {"vocab": 32003, "top_k": 300, "top_p": 0.7},
    "all": {"vocab": 1003, "temperature": 1.5, **_ALL},
    "gumbel": {"vocab": 32003, "method": "gumbel"},
    "gumbel_all": {
      "vocab": 1003,
      "method": "gumbel",
      "temperature": "rows",
      **_ALL,
    },
    "greedy": {"vocab": 1003, "greedy": True, "temperature": 0.7},
  },
)
