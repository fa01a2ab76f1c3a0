"""Weights of whole groups, from the lengths of right and wrong answers."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group

WEIGHTINGS = ("amplify", "attenuate_vlm", "attenuate_llm")


def group_weights(
  correct: Bool[Array, "N"],
  lengths: Int[Array, "N"],
  truncated: Bool[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  weighting: str = "amplify",
  attenuated: float = 0.1,
  amplified: float = 2.0,
  tau: float = 0.5,
) -> Float[Array, "N"]:
  """How much a group counts: does thinking longer pay there, and is it hard?

    L_pos = longest correct completion
    L_neg = mean length of the wrong ones that are not truncated
    LA    = L_pos > L_neg,   DA = share of correct ones <= tau

    amplify        amplified if LA and DA, else 1
    attenuate_vlm  1 if LA or nothing is correct, else attenuated
    attenuate_llm  1 if LA, else attenuated

  of the paper for text, of the paper for images, of the released code for text.

  Without a correct completion LA is false. Without an untruncated wrong one it
  is false for attenuate_vlm and true for the others if any is correct.

  Args:
    correct: groups contiguous.
    lengths: tokens of each completion.
    truncated: true where a completion ended by length.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    weighting: one of WEIGHTINGS.
    attenuated: lambda, 0 or more.
    amplified: w, 0 or more.
    tau: share of correct completions up to which a prompt is hard.

  Returns:
    One weight a completion, equal within a group.

  Raises:
    ValueError: if weighting is not one of them.

  References:
    ADORA, arXiv:2602.10019, its code and blog; that LA and DA are joined by
    "and" is our reading.
  """
  check_weighting(weighting)
  chex.assert_equal_shape([correct, lengths, truncated])
  shape = (-1, group_size)
  counted = group.counted_rows(weights, lengths).reshape(shape)
  right = correct.reshape(shape) & counted
  wrong = counted & ~right & ~truncated.reshape(shape)
  tokens = lengths.reshape(shape)
  longest = jnp.where(right, tokens, -jnp.inf).max(axis=1, keepdims=True)
  total = jnp.where(wrong, tokens, 0).sum(axis=1, keepdims=True)
  failures = wrong.sum(axis=1, keepdims=True)
  nothing = jnp.inf if weighting == "attenuate_vlm" else -jnp.inf
  mean = jnp.where(failures > 0, total / jnp.maximum(failures, 1), nothing)
  pays = longest > mean
  solved = right.sum(axis=1, keepdims=True)
  rows = jnp.maximum(counted.sum(axis=1, keepdims=True), 1)
  if weighting == "amplify":
    found = jnp.where(pays & (solved / rows <= tau), amplified, 1.0)
  elif weighting == "attenuate_vlm":
    found = jnp.where(pays | (solved == 0), 1.0, attenuated)
  else:
    found = jnp.where(pays, 1.0, attenuated)
  return jnp.broadcast_to(found, counted.shape).reshape(-1)


def check_weighting(weighting: str) -> None:
  """Raises ValueError unless it is one of WEIGHTINGS."""
  if weighting not in WEIGHTINGS:
    raise ValueError(
      f"weighting must be one of {', '.join(WEIGHTINGS)}; got {weighting!r}."
    )
