"""Weights that correct for a sampler that is not quite the trained policy.

An inference engine, or weights that are some steps old, give a token another
probability than the trainer does. d = o - u, o the trainer's log-probability
at the weights of the rollout and u the sampler's, both at the same temperature
and over the same set of tokens: truncation by top-p or top-k on one side only
makes every ratio wrong.

Weights are constants, 1 wherever o = u, and multiply the policy loss before
any KL is added. Padding and numbers that are no numbers have d = 0.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask", "seq_mask")

# exp of it is finite in float32 and beyond any bound that is of use; verl's.
_LIMIT = 20.0


def log_mismatch(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
) -> Float[Array, "N T"]:
  """How much likelier the trainer finds a token than the sampler did.

    d_it = old_logprobs_it - rollout_logprobs_it

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats; NaN where an engine gave none.
    mask: true on the policy's own tokens; the rest may hold anything.

  Returns:
    Constants in nats; 0 outside the mask and for NaN, 20 for infinity.
  """
  chex.assert_equal_shape([old_logprobs, rollout_logprobs, mask])
  ours = jnp.where(mask, old_logprobs, 0.0)
  theirs = jnp.where(mask, rollout_logprobs, 0.0)
  mismatch = jnp.nan_to_num(ours - theirs, posinf=_LIMIT, neginf=-_LIMIT)
  return jax.lax.stop_gradient(mismatch)


def log_weights(
  mismatch: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  level: str = "token",
  limit: float = _LIMIT,
) -> Float[Array, "N T"] | Float[Array, "N 1"]:
  """The log-ratio of a token, of its row, or of its row per token.

    token: d_it    sequence: sum_t d_it    geometric: sum_t d_it / n_i

  clipped to [-limit, limit]. The product over a row is unbiased, its variance
  grows with the length; the geometric mean and the single token are biased.
  0, a ratio of 1, for a row without tokens.

  Args:
    mismatch: d, from log_mismatch.
    mask: true on the policy's own tokens.
    level: one of LEVELS.
    limit: nats; 20 in verl, 10 in open-instruct, none in TRL.

  Returns:
    [N, T] for "token", else one column.
  """
  _check_level(level)
  chex.assert_equal_shape([mismatch, mask])
  if level != "token":
    mismatch = mismatch.sum(axis=1, keepdims=True)
  if level == "geometric":
    mismatch = mismatch / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  return jnp.clip(mismatch, -limit, limit)


def truncated(
  log_ratio: Float[Array, "N K"], *, low: float = 0.0, high: float = 2.0
) -> Float[Array, "N K"]:
  """min(max(w, low), high) with w = exp(log_ratio): bounded, never 0 (TIS)."""
  return jnp.clip(jnp.exp(log_ratio), low, high)


def masked_outside(
  log_ratio: Float[Array, "N K"], *, low: float = 0.5, high: float = 5.0
) -> Float[Array, "N K"]:
  """Keeps w = exp(log_ratio) if low <= w <= high, else 0 (MIS, IcePop)."""
  ratio = jnp.exp(log_ratio)
  return jnp.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def batch_normalized(
  weights: Float[Array, "N T"], mask: Bool[Array, "N T"], *, by_row: bool
) -> Float[Array, "N T"]:
  """Divides weights by their mean, so that they are 1 on average.

  Args:
    weights: 0 outside the mask.
    mask: true on the policy's own tokens.
    by_row: False takes the mean over tokens, True first the mean of each row
      and then that of the rows that have tokens, where rows share one weight.

  Returns:
    Weights of mean 1; as they came where all are 0.
  """
  total, count = weights.sum(axis=1), mask.sum(axis=1)
  if by_row:
    total, count = total / jnp.maximum(count, 1), count > 0
  mean = total.sum() / jnp.maximum(count.sum(), 1)
  return weights / jnp.where(mean > 1e-8, mean, 1.0)


def rollout_weights(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  level: str = "token",
  mode: str = "truncate",
  low: float = 0.0,
  high: float = 2.0,
  normalize: bool = False,
) -> Float[Array, "N T"]:
  """Importance weights of the trainer against the sampler, bounded.

    w = exp(log_weights(level))
    truncate: min(max(w, low), high)                         (TIS)
    mask:     w if low <= w <= high, else 0                  (MIS, IcePop)
    seq_mask: w if low <= exp(mean_t d) <= high, else 0      (seq-mask-TIS)

  A weight of 0 leaves the token in every denominator; transforms.rejection
  takes it out.

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    level: one of LEVELS.
    mode: one of MODES; what happens out of bounds.
    low: lower bound of the ratio, 0 or more; 0 is none.
    high: upper bound of the ratio; inf is none.
    normalize: divides by the batch's mean weight.

  Returns:
    Constants, 0 outside the mask, 1 in it where the two policies agree.

  Raises:
    ValueError: for an unknown level or mode, or bounds out of order.

  References:
    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training"; Ling Team 2025 (IcePop), arXiv:2510.18855.
  """
  check_weights(level=level, mode=mode, low=low, high=high)
  mismatch = log_mismatch(old_logprobs, rollout_logprobs, mask)
  log_ratio = log_weights(mismatch, mask, level=level)
  if mode == "truncate":
    weights = truncated(log_ratio, low=low, high=high)
  elif mode == "mask":
    weights = masked_outside(log_ratio, low=low, high=high)
  else:
    gate = log_weights(mismatch, mask, level="geometric")
    inside = masked_outside(gate, low=low, high=high) > 0
    weights = jnp.where(inside, jnp.exp(log_ratio), 0.0)
  weights = jnp.where(mask, jnp.broadcast_to(weights, mask.shape), 0.0)
  if normalize:
    weights = batch_normalized(weights, mask, by_row=level != "token")
  return weights


def check_weights(*, level: str, mode: str, low: float, high: float) -> None:
  """Raises ValueError unless known, and 0 <= low < high."""
  _check_level(level)
  if mode not in MODES:
    raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
  if not 0 <= low < high:
    raise ValueError(
      f"the bounds of the ratio must hold 0 <= low < high, got low {low} and"
      f" high {high}."
    )


def _check_level(level) -> None:
  if level not in LEVELS:
    raise ValueError(
      f"level must be one of {', '.join(LEVELS)}; got {level!r}."
    )
