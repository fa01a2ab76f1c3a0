"""Credit re-weighed by how sure the policy was of what it read and wrote."""

import fractions
import math

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from jaxrl_llm.advantages import group


def low_probability_confidence(
  logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  fraction: float = 0.2,
) -> Float[Array, "N"]:
  """Geometric mean of the probabilities of a row's least likely tokens.

    c = exp(mean of the ceil(fraction L) smallest logprobs),  L = sum_t m_t

  Most tokens of a text are certain and say nothing. With fraction 1 it is the
  inverse perplexity; it never exceeds that.

  Args:
    logprobs: nats; may hold anything outside the mask.
    mask: true on tokens that count.
    fraction: of a row's tokens; (0, 1].

  Returns:
    In (0, 1]; 1 for a row without tokens.

  Raises:
    ValueError: if fraction is out of range.

  References:
    ProGRPO, arXiv:2602.05281.
  """
  check_fraction(fraction)
  chex.assert_equal_shape([logprobs, mask])
  # Exactly: 0.2 in binary is more than a fifth, and a fifth of 5 tokens is 1.
  share = fractions.Fraction(str(fraction))
  counts = [math.ceil(share * n) for n in range(mask.shape[1] + 1)]
  count = jnp.asarray(np.array(counts))[mask.sum(axis=1)][:, None]
  ordered = jnp.sort(jnp.where(mask, logprobs, jnp.inf), axis=1)
  least = jnp.arange(mask.shape[1])[None, :] < count
  total = jnp.where(least, ordered, 0.0).sum(axis=1)
  return jnp.exp(total / jnp.maximum(count[:, 0], 1))


def confidence_shifted(
  advantages: Float[Array, "N"],
  correct: Bool[Array, "N"],
  prompt_confidence: Float[Array, "N"],
  confidence: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  alpha: float = 0.3,
  skip_all_correct: bool = False,
  correct_only: bool = False,
) -> Float[Array, "N"]:
  """Gives more credit to completions the policy was less sure of (ARM).

    A_i + alpha (c(q) - c(o_i))   in groups with a correct completion, else A_i

  Less than alpha is added or taken. The sum over a group is no longer 0: it is
  alpha times that of the differences.

  Args:
    advantages: A, groups contiguous.
    correct: which completions are.
    prompt_confidence: c(q) of each row's prompt, in [0, 1].
    confidence: c(o), in [0, 1].
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    alpha: credit for a confidence of 1; 0 or more.
    skip_all_correct: leaves groups alone in which all are correct.
    correct_only: leaves wrong completions alone.

  Returns:
    Advantages; at equal A they fall with c(o).

  References:
    ProGRPO, arXiv:2602.05281, from secondary sources.
  """
  chex.assert_equal_shape([advantages, correct, prompt_confidence, confidence])
  shape = (-1, group_size)
  counted = group.counted_rows(weights, advantages).reshape(shape)
  right = correct.reshape(shape) & counted
  active = right.any(axis=1, keepdims=True)
  if skip_all_correct:
    active &= (counted & ~right).any(axis=1, keepdims=True)
  moved = active & (right if correct_only else counted)
  shift = alpha * (prompt_confidence - confidence).reshape(shape)
  shift = jnp.where(moved, shift, 0.0).reshape(-1)
  return advantages + shift


def own_prompt_tokens(
  prompt_mask: Bool[Array, "N S"],
) -> Bool[Array, "N S"]:
  """Tokens of a left-padded prompt that have a log-prob: all but the first."""
  before = jnp.roll(prompt_mask, 1, axis=1).at[:, 0].set(False)
  return prompt_mask & before


def check_fraction(fraction: float) -> None:
  """Raises ValueError unless fraction is in (0, 1]."""
  if not 0 < fraction <= 1:
    raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
