"""The door to contiguous groups: checks, masks, the choice of form."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.group_stats import moments, reference, xla
from pallas_kernels.group_stats.moments import Moments

_SCALES = ("std", "leave_one_out", None)


def group_moments(
  rewards: jax.Array,
  group_size: int,
  *,
  mask: jax.Array | None = None,
  impl: str | None = None,
) -> Moments:
  """Mean, deviations and their squares in contiguous groups of one size.

    mean_g = sum_i m_i r_i / n_g,  n_g = sum_i m_i;  centred = m (r - mean_g)

  Differentiable in `rewards`. One group of all N is group_size = N.

  Args:
    rewards: [N], any float dtype; computed in float32 (float64 stays).
    group_size: G; at least 1, must divide N.
    mask: [N]; a row counts where it is true, None counts all. What does not
      count may hold anything.
    impl: see dispatch.py; None follows JAXRL_KERNELS.

  Returns:
    Moments of B = N / G groups: centred [B, G], the others [B, 1].

  Raises:
    ValueError: for shapes that do not fit.
  """
  grouped, mask = _grouped(rewards, group_size, mask)
  return dispatch.call(
    "group_stats",
    impl,
    *(grouped, mask),
    xla=xla.groups,
    reference=reference.groups,
  )


def group_normalize(
  rewards: jax.Array,
  group_size: int,
  *,
  mask: jax.Array | None = None,
  center: str = "mean",
  scale: str | None = "std",
  eps: float = 1e-4,
  ddof: int = 1,
  impl: str | None = None,
) -> jax.Array:
  """Centres rewards in contiguous groups and divides by a deviation.

    center "mean"            c_i = r_i - mean_g
    center "leave_one_out"   c_i = r_i - mean_-i = n / (n - 1) (r_i - mean_g)
    scale None               A_i = c_i
    scale "std"              A_i = c_i / (std_g + eps)
    scale "leave_one_out"    A_i = c_i / (std_-i + eps), c_i where std_-i = 0

  over the n rows of a group that count; -i are the siblings of row i alone.
  A row without siblings gets 0.

  Exactly 0 where the counted rewards of a group are equal in float32, whatever
  the constant. Differentiable in `rewards`; in such a group the gradient is
  that of the centring, over eps.

  Args:
    rewards: [N], any float dtype; computed in float32 (float64 stays).
    group_size: G; at least 1, must divide N.
    mask: [N]; a row counts where it is true, None counts all. What does not
      count may hold anything.
    center: "mean" or "leave_one_out".
    scale: "std", "leave_one_out" or None.
    eps: positive, added to the deviation, in units of reward.
    ddof: 1 divides the variance by one less than its rows, 0 by its rows.
    impl: see dispatch.py; None follows JAXRL_KERNELS.

  Returns:
    [N] float32, or float64: 0 for rows that do not count; but for scale
    "leave_one_out" the sum over each group is 0.

  Raises:
    ValueError: for shapes that do not fit, or an option that is not offered.

  References:
    Shao et al. 2024, arXiv:2402.03300 (mean, std); Liu et al. 2025,
    arXiv:2503.20783 (mean, None); Ahmadian et al. 2024, arXiv:2402.14740
    (leave_one_out, None).
  """
  knobs = {"center": center, "scale": scale, "eps": eps, "ddof": ddof}
  moments.check(scales=_SCALES, **knobs)
  found = group_moments(rewards, group_size, mask=mask, impl=impl)
  if scale != "leave_one_out":
    return moments.normalized(found, **knobs).reshape(-1)
  _, mask = _grouped(rewards, group_size, mask)
  deviation = _sibling_std(found.centred, mask, ddof=ddof, impl=impl)
  divisor = jnp.where(deviation > 0, deviation + eps, 1)
  return (moments.centred(found, center) / divisor).reshape(-1)


def _grouped(rewards, group_size, mask):
  """Rewards and mask, both [B, G]."""
  shape = rewards.shape
  if len(shape) != 1 or group_size < 1 or shape[0] % group_size:
    raise ValueError(
      "group_stats needs rewards [N] and a group_size of at least 1 that"
      f" divides N, got {shape} and {group_size}."
    )
  if mask is None:
    mask = jnp.ones(shape, bool)
  if mask.shape != shape:
    raise ValueError(f"mask must be [N] {shape}, got {mask.shape}.")
  grouped = -1, group_size
  return rewards.reshape(grouped), mask.astype(bool).reshape(grouped)


def _sibling_std(centred, mask, *, ddof, impl):
  """Std [B, G] of the other rows of the group of each row."""
  rows, size = centred.shape
  others = mask[:, None, :] & ~jnp.eye(size, dtype=bool)[None]
  table = jnp.broadcast_to(centred[:, None, :], others.shape)
  found = group_moments(
    table.reshape(-1), size, mask=others.reshape(-1), impl=impl
  )
  return found.std(ddof=ddof).reshape(rows, size)
