"""Credit of the segments that a completion is cut into."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import reverse_scan


def segment_advantages(
  rewards: Float[Array, "N"],
  ends: Int[Array, "N T"],
  deltas: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  lam: float = 1.0,
) -> Float[Array, "N T"]:
  """Generalised advantages over segments; all tokens of one have the same.

    A_k = delta_k + lam A_{k+1},  delta of the last segment + R

  with delta the value of the state that a segment ends in less that of the one
  it begins in. With lam = 1 and no empty segment A_k is R less the value where
  segment k begins; with lam = 0 it is delta_k.

  Args:
    rewards: R, outcome of each completion.
    ends: 0 inside a segment, 1 on its last token, 2 on the last of the last
      segment, where R comes.
    deltas: on those tokens, without R; 0 elsewhere.
    mask: true on the policy's own tokens; the rest may hold anything.
    lam: in [0, 1].

  Returns:
    Advantages in units of reward, 0 outside the mask.

  Raises:
    ValueError: if lam is outside [0, 1].

  References:
    Schulman et al. 2016, arXiv:1506.02438, eq. 16; Chen et al. 2026,
    arXiv:2605.29782.
  """
  check_lam(lam)
  chex.assert_rank([rewards, mask], [1, 2])
  chex.assert_equal_shape([ends, deltas, mask])
  ends = jnp.where(mask, ends, 0)
  surprise = jnp.where(mask, deltas, 0.0)
  surprise += jnp.where(ends == 2, rewards[:, None], 0.0)
  decay = jnp.where(ends > 0, lam, 1.0).astype(surprise.dtype)
  return jnp.where(mask, reverse_scan.reverse_scan(decay, surprise), 0.0)


def check_lam(lam: float) -> None:
  """Raises ValueError unless lam is in [0, 1]."""
  if not 0 <= lam <= 1:
    raise ValueError(
      f"lam must be in [0, 1], got {lam}: 1 takes the reward itself, 0 the"
      " value of the next state."
    )
