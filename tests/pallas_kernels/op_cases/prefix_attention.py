"""Cases of prefix_attention: padding, groups, heads, empty parts, merging."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import prefix_attention

_SIZES = {"prompt": 5, "length": 6, "heads": 4, "kv_heads": 2, "dim": 8}


def problem(dtype, *, prompts=2, group=3, pad="left", merged=False, **knobs):
  """Own lengths run from 0 to C; pad "all" leaves the last prompt empty.

  merged: the own tokens attend in a call of their own and are merged.
  """
  s = {name: knobs.pop(name, size) for name, size in _SIZES.items()}
  rng = np.random.default_rng(prompts + group)
  rows = prompts * group
  shared = (prompts, s["prompt"], s["kv_heads"], s["dim"])
  own = (rows, s["length"], s["kv_heads"], s["dim"])
  shapes = ((rows, s["heads"], s["dim"]), shared, shared, own, own)
  inputs = [rng.normal(size=shape) for shape in shapes]
  length = np.arange(rows, dtype=np.int32)[::-1] % (s["length"] + 1)
  real = np.maximum(s["prompt"] - 2 * np.arange(prompts), 1)
  place = np.arange(s["prompt"])[None]
  mask = {
    "left": place >= s["prompt"] - real[:, None],
    "right": real.astype(np.int32),
    "all": np.broadcast_to(np.arange(prompts)[:, None] == 0, shared[:2]),
  }[pad]

  def function(impl, q, prompt_k, prompt_v, k, v):
    options = knobs | {"impl": impl, "with_logsumexp": True}
    out, logsumexp = prefix_attention.shared_prefix_attention(
      *(q, prompt_k, prompt_v, jnp.asarray(mask), k, v),
      jnp.asarray(length * 0 if merged else length),
      group_size=group,
      **options,
    )
    if merged:
      size = s["length"]
      further = prefix_attention.Part(
        *(k, v),
        jnp.asarray(np.arange(size) < length[:, None])[:, None, None],
        *("skd", "skd"),
      )
      heads = (rows, s["kv_heads"], -1, s["dim"])
      o, lse = prefix_attention.attend(
        q.reshape(heads), [further], scale=s["dim"] ** -0.5, **options
      )
      o, lse = o.reshape(out.shape), lse.reshape(logsumexp.shape)
      out, logsumexp = prefix_attention.merge(out, logsumexp, o, lse)
    # -1e30 of a row without keys would be the scale of all errors.
    return out, jnp.where(logsumexp <= -1e30, 0, logsumexp)

  return op_cases.Problem(
    function, tuple(np.asarray(jnp.asarray(x, dtype)) for x in inputs)
  )


OP = op_cases.Op(
  name="prefix_attention",
  impls=("xla",),
  problem=problem,
  cases={
    "left": {},
    "right_mha_softcap": {"pad": "right", "kv_heads": 4, "softcap": 1.5},
    "group_of_one": {"group": 1, "prompts": 5, "prompt": 1},
    "group_of_16_mqa": {"group": 16, "kv_heads": 1, "scale": 0.7},
    "long": {"prompt": 300, "length": 130, "dim": 64},
    "no_key": {"pad": "all", "softcap": 1.5},
    "merged_no_key": {"merged": True, "pad": "all", "softcap": 2.0},
  },
  # Weights are rounded to the dtype of the values that they weigh.
  tolerance=op_cases.TOLERANCE | {"bfloat16": (8e-3, 8e-3)},
)
