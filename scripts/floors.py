"""The least time that a GRPO step's arithmetic and traffic need on a machine.

Operations are counted from the sizes: every matrix product of one prefill a
prompt, one decode forward a token, and forward, backward and the head's
recomputation in training, with each prompt once per group. Rates are measured
here, in the process that is being judged.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp


def rates(dtype: str, rows: int = 1024) -> dict[str, float]:
  """Best matmul rate [operations/s] and copy rate [bytes/s] of this machine."""
  x = jnp.ones((rows, rows), dtype)
  product = jax.jit(
    lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32)
  )
  block = jnp.ones((32 << 20,), jnp.float32)
  copy = jax.jit(lambda a: a + 1)
  return {
    "matmul": 2.0 * rows**3 / _best(product, x, x),
    "copy": 2.0 * block.nbytes / _best(copy, block),
  }


def _best(fn, *args, repeats: int = 12) -> float:
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return min(times)


def operations(
  *,
  prompts: int,
  group: int,
  prompt_len: int,
  completion_len: int,
  matrix_params: int,
  head_params: int,
  attention_width: int,
  params: int,
  beta: float = 0.0,
) -> dict[str, dict[str, float]]:
  """Operations and bytes of each phase.

  Args:
    prompts: B.
    group: G.
    prompt_len: S.
    completion_len: T.
    matrix_params: parameters of all blocks' matrices.
    head_params: V * D.
    attention_width: depth * heads * head_dim.
    params: all parameters.
    beta: above 0 a reference forward is counted.
  """
  rows = prompts * group
  fed = rows * (completion_len - 1)
  positions = prompts * prompt_len + fed
  head = 2.0 * head_params
  own = (completion_len - 1) / 2
  attention = (
    4.0
    * attention_width
    * (prompts * prompt_len**2 / 2 + fed * (prompt_len + own))
  )
  rollout = (
    2.0 * matrix_params * positions
    + attention
    + head * (prompts + rows * (completion_len - 1))
  )
  tokens = rows * completion_len
  forward = 2.0 * matrix_params * positions + attention + head * tokens
  train = 3.0 * forward + head * tokens + (forward if beta else 0.0)
  return {
    "rollout": {
      "operations": rollout,
      "bytes": 4.0 * params * completion_len,
    },
    # AdamW reads and writes p, m, v and reads the gradient.
    "train": {"operations": train, "bytes": 4.0 * params * 7},
  }


def step_floors(args: Any, measured: dict[str, float]) -> dict[str, Any]:
  """Seconds that each phase of bench_step needs at the measured rates.

  Args:
    args: of bench_step.
    measured: median seconds by phase.
  """
  heads, dim = args.heads, args.head_dim or args.dim // args.heads
  kv_heads = args.kv_heads or max(1, heads // 2)
  ffn = args.ffn or 3 * args.dim
  block = args.dim * (2 * heads + 2 * kv_heads) * dim + 3 * args.dim * ffn
  head = args.vocab * args.dim
  counts = operations(
    prompts=args.prompts,
    group=args.group,
    prompt_len=args.prompt_len,
    completion_len=args.completion_len,
    matrix_params=args.layers * block,
    head_params=head,
    attention_width=args.layers * heads * dim,
    params=args.layers * block + head * (2 if args.untied else 1),
    beta=args.beta,
  )
  speed = rates(args.dtype)
  out = {
    "matmul_gflops": round(speed["matmul"] / 1e9, 1),
    "copy_gb_s": round(speed["copy"] / 1e9, 1),
  }
  for phase, count in counts.items():
    floor = max(
      count["operations"] / speed["matmul"], count["bytes"] / speed["copy"]
    )
    out[phase] = {
      "gflop": round(count["operations"] / 1e9, 2),
      "mb": round(count["bytes"] / 1e6, 1),
      "floor_s": round(floor, 4),
      "times_floor": round(measured[phase] / floor, 1),
    }
  return out
