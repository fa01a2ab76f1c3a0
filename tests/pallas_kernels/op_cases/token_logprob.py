"""Cases of token_logprob: odd sizes, soft-cap, temperature, masks, targets."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import token_logprob

_OPTIONS = {name: {"impl": name} for name in ("reference", "auto", "xla")}


def problem(dtype, *, tokens, width, vocab, mask=None, layout="vd", **maths):
  """Targets hold V - 1, -1 and V; maths are keywords of token_logprob."""
  rng = np.random.default_rng(tokens + vocab)
  hidden = rng.normal(size=(tokens, width))
  head = 0.3 * rng.normal(size=(vocab, width))
  targets = rng.integers(0, vocab, tokens)
  targets[:3] = [vocab - 1, -1, vocab]
  masks = {
    None: None,
    "zeros": np.zeros(tokens, bool),
    "ones": np.ones(tokens, bool),
    "some": rng.random(tokens) < 0.7,
  }

  def function(impl, hidden, head):
    return tuple(
      token_logprob.token_logprob(
        hidden,
        head,
        targets.astype(np.int32),
        head_layout=layout,
        mask=None if mask is None else jnp.asarray(masks[mask]),
        **_OPTIONS[impl],
        **maths,
      )
    )

  head = head if layout == "vd" else head.T
  return op_cases.Problem(
    function, tuple(np.asarray(jnp.asarray(x, dtype)) for x in (hidden, head))
  )


OP = op_cases.Op(
  name="token_logprob",
  impls=("xla",),
  problem=problem,
  cases={
    "aligned": {"tokens": 128, "width": 128, "vocab": 1024},
    "ragged": {"tokens": 37, "width": 24, "vocab": 1003},
    "large": {"tokens": 5, "width": 8, "vocab": 32003},
    "softcap": {
      "tokens": 37,
      "width": 24,
      "vocab": 1003,
      "softcap": 2.0,
      "inv_temperature": 0.7,
    },
    "dv": {"tokens": 37, "width": 24, "vocab": 1003, "layout": "dv"},
    "mask_zeros": {"tokens": 9, "width": 24, "vocab": 300, "mask": "zeros"},
    "mask_ones": {"tokens": 9, "width": 24, "vocab": 300, "mask": "ones"},
    "mask_some": {"tokens": 37, "width": 24, "vocab": 1003, "mask": "some"},
  },
)
