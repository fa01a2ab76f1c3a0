"""Cases of token_logprob: odd sizes, soft-cap, temperature, masks, targets."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import token_logprob


def options(impl, vocab):
  """Keywords; tiles are small so that there are several and an overhang."""
  tile = token_logprob.Tile(128, 256 if vocab < 4096 else 2048)
  kernel = {"impl": "interpret", "blocks": token_logprob.Blocks(*[tile] * 3)}
  return {
    "reference": {"impl": "reference"},
    "auto": {"impl": "auto"},
    "xla": {"impl": "xla"},
    "chunks": {"impl": "xla", "chunk": 300},
    "interpret": kernel,
    "interpret_grad": {**kernel, "backward": "pallas"},
  }[impl]


def problem(
  dtype,
  *,
  tokens,
  width,
  vocab,
  mask=None,
  layout="vd",
  head_dtype=None,
  **maths,
):
  """Targets hold V - 1, -1 and V; maths are keywords of token_logprob."""
  rng = np.random.default_rng(tokens + vocab)
  hidden = jnp.asarray(rng.normal(size=(tokens, width)), dtype)
  # Logits of deviation 1.5: float32 rounds p by the size of its logit.
  head = 1.5 / np.sqrt(width) * rng.normal(size=(vocab, width))
  head = jnp.asarray(head, dtype)
  head = head.astype(head_dtype or dtype)
  targets = rng.integers(0, vocab, tokens)
  targets[:3] = [vocab - 1, -1, vocab]
  masks = {
    None: None,
    "zeros": np.zeros(tokens, bool),
    "ones": np.ones(tokens, bool),
    "some": (rng.random(tokens) < 0.7) & (np.arange(tokens) >= 128),
  }

  def function(impl, hidden, head):
    return tuple(
      token_logprob.token_logprob(
        hidden,
        head,
        targets.astype(np.int32),
        head_layout=layout,
        mask=None if mask is None else jnp.asarray(masks[mask]),
        **options(impl, vocab),
        **maths,
      )
    )

  head = head if layout == "vd" else head.T
  return op_cases.Problem(function, (np.asarray(hidden), np.asarray(head)))


_RAGGED = {"tokens": 130, "width": 128, "vocab": 1003}

OP = op_cases.Op(
  name="token_logprob",
  impls=("xla", "chunks", "interpret", "interpret_grad"),
  problem=problem,
  cases={
    "aligned": {"tokens": 128, "width": 128, "vocab": 1024, "mask": "ones"},
    "ragged": _RAGGED,
    "large": {"tokens": 5, "width": 128, "vocab": 32003},
    "softcap": {**_RAGGED, "softcap": 2.0, "inv_temperature": 0.7},
    "dv": {**_RAGGED, "layout": "dv", "head_dtype": "float32"},
    "mask_zeros": {"tokens": 9, "width": 128, "vocab": 300, "mask": "zeros"},
    "mask_some": {"tokens": 260, "width": 128, "vocab": 300, "mask": "some"},
    "narrow": {"tokens": 37, "width": 24, "vocab": 1003},
  },
  skip={
    (impl, "narrow"): "the kernels want a width of whole lanes"
    for impl in ("interpret", "interpret_grad")
  },
)
