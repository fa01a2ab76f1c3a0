"""What is known of a set of values, and what is made of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
  """Values seen from the mean of their group.

  Attributes:
    centred: [B, G] x - mean; exactly 0 for what does not count and in groups
      whose counted values are all equal.
    mean: [B, 1] over the items that count, 0 where none does.
    count: [B, 1] items that count, in the dtype of the mean.
    squares: [B, 1] sum of centred^2.
    equal: [B, 1] bool, true where there is at most one distinct counted value.
  """

  centred: jax.Array
  mean: jax.Array
  count: jax.Array
  squares: jax.Array
  equal: jax.Array

  def std(self, *, ddof: int = 1) -> jax.Array:
    """[B, 1] sqrt(squares / (count - ddof)); exactly 0 where all are equal.

    Its gradient there is 0 as well.

    Args:
      ddof: 1 divides by one less than the items that count, 0 by the items.
    """
    variance = self.squares / jnp.maximum(self.count - ddof, 1)
    positive = variance > 0
    root = jnp.sqrt(jnp.where(positive, variance, 1))
    return jnp.where(positive, root, 0)


def centred(found: Moments, center: str) -> jax.Array:
  """Deviations from the mean, or from the mean of the others."""
  if center == "mean":
    return found.centred
  return found.centred * (found.count / jnp.maximum(found.count - 1, 1))


def normalized(
  found: Moments, *, center: str, scale: str | None, eps: float, ddof: int
) -> jax.Array:
  """Deviations over the std + eps, or undivided where scale is None."""
  values = centred(found, center)
  return values if scale is None else values / (found.std(ddof=ddof) + eps)


def check(
  *,
  center: str,
  scale: str | None,
  scales: tuple[str | None, ...],
  eps: float,
  ddof: int,
) -> None:
  """Raises ValueError for options that are not offered."""
  if center not in ("mean", "leave_one_out"):
    raise ValueError(f"center is 'mean' or 'leave_one_out', got {center!r}.")
  if scale not in scales:
    raise ValueError(f"scale is one of {scales}, got {scale!r}.")
  if not 0 < eps < float("inf"):
    raise ValueError(f"eps must be positive and finite, got {eps}.")
  if ddof not in (0, 1):
    raise ValueError(f"ddof must be 0 or 1, got {ddof}.")
