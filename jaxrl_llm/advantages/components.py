"""Several rewards for one completion: add and normalise, or the reverse.

A component that is NaN does not apply to its row: it adds nothing there and
takes no part in the statistics of its group. A row without any component, or
of weight 0, gets exactly 0; so does a group whose components are all equal.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.advantages import batch, group


def of_rollout(
  rollout: types.Rollout,
) -> tuple[Float[Array, "N K"], Float[Array, "K"]]:
  """X and w as a run has them; a rollout without components has one reward.

  Args:
    rollout: with reward_components and reward_weights in extras, the latter
      the same in every row, or with neither.
  """
  parts = rollout.extras.get("reward_components")
  if parts is None:
    parts = rollout.rewards[:, None]
    return parts, jnp.ones(1, parts.dtype)
  return parts, rollout.extras["reward_weights"][0]


def combined(
  components: Float[Array, "N K"], component_weights: Float[Array, "K"]
) -> Float[Array, "N"]:
  """Weighted sum of the components that apply; NaN where none does.

    R_i = sum_k w_k X_ik

  The rewards of sum-then-normalise (TRL multi_objective_aggregation
  "sum_then_normalize"): hand them to any estimator, with weights that leave
  the NaN out.

  Args:
    components: X, NaN where one does not apply.
    component_weights: w, factor of each.
  """
  chex.assert_shape(component_weights, (components.shape[1],))
  present = ~jnp.isnan(components)
  total = _weighted(components, component_weights).sum(axis=1)
  return jnp.where(present.any(axis=1), total, jnp.nan)


def discretized(
  components: Float[Array, "N K"],
  edges: Sequence[Sequence[float] | Float[Array, "m"]],
  levels: Sequence[Sequence[float]],
) -> Float[Array, "N K"]:
  """Snaps each component to one of a few levels (PEARL).

    D_ik = l_j,  j = number of edges e <= X_ik

  Args:
    components: X; NaN stays NaN.
    edges: rising, of each component, or one list for all.
    levels: one more than the edges of each component, or one list for all.

  Raises:
    ValueError: unless there is one list, or one for each component.

  References:
    PEARL, arXiv:2605.29582.
  """
  count = components.shape[1]
  for name, lists in (("edges", edges), ("levels", levels)):
    if len(lists) not in (1, count):
      raise ValueError(
        f"{name} must be one list, or one for each of {count} components, got"
        f" {len(lists)}."
      )
  columns = []
  for index, values in enumerate(components.T):
    own = jnp.asarray(edges[index % len(edges)], components.dtype)
    to = jnp.asarray(levels[index % len(levels)], components.dtype)
    found = to[(values[:, None] >= own[None, :]).sum(axis=1)]
    columns.append(jnp.where(jnp.isnan(values), jnp.nan, found))
  return jnp.stack(columns, axis=1)


def thirds(
  components: Float[Array, "N K"],
  weights: Float[Array, "N"] | None = None,
) -> Float[Array, "K 2"]:
  """Edges at a third and two thirds of what each component ranges over.

  Args:
    components: X of the batch, NaN where one does not apply.
    weights: a row counts where this is positive; None counts all.
  """
  counted = group.counted_rows(weights, components[:, 0])
  seen = ~jnp.isnan(components) & counted[:, None]
  low = jnp.where(seen, components, jnp.inf).min(axis=0)
  high = jnp.where(seen, components, -jnp.inf).max(axis=0)
  low = jnp.where(seen.any(axis=0), low, 0.0)
  width = jnp.where(seen.any(axis=0), high, 0.0) - low
  return low[:, None] + width[:, None] * jnp.array([[1, 2]], low.dtype) / 3


def normalized_sum(
  components: Float[Array, "N K"],
  component_weights: Float[Array, "K"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ddof: int = 1,
  eps: float = 1e-4,
) -> Float[Array, "N"]:
  """Standardises each component in its group, then adds them.

    Z_ik = (X_ik - mean_gk) / (std_gk + eps),  S_i = sum_k w_k Z_ik

  No component drowns another by its scale. A constant one adds nothing.

  Args:
    components: X, groups contiguous, NaN where one does not apply.
    component_weights: w, factor of each.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    ddof: subtracted from the number of rows in the variances.
    eps: added to the standard deviations, in units of reward.

  Returns:
    Sums, dimensionless, zero in total over each group.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.

  References:
    GDPO, arXiv:2601.05242.
  """
  chex.assert_shape(component_weights, (components.shape[1],))
  counted = group.counted_rows(weights, components[:, 0])
  present = ~jnp.isnan(components) & counted[:, None]
  normalize = lambda values, rows: group.group_normalized(  # noqa: E731
    values, rows, group_size=group_size, ddof=ddof, eps=eps
  )
  scores = jax.vmap(normalize, in_axes=1, out_axes=1)(
    components, present.astype(components.dtype)
  )
  return _weighted(scores, component_weights).sum(axis=1)


def gdpo(
  components: Float[Array, "N K"],
  component_weights: Float[Array, "K"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  ddof: int = 1,
  eps: float = 1e-4,
) -> Float[Array, "N"]:
  """Standardises components in groups, adds them, rescales over the batch.

    A_i = S_i / (std(S) + eps),  S as in normalized_sum

  over the rows with a component (TRL multi_objective_aggregation
  "normalize_then_sum", which also subtracts mean(S), zero but for rounding).
  verl whitens over tokens instead: token.whiten of S spread over the mask.
  With K = 1 it is group_normalized over its own deviation.

  Args:
    components: X, groups contiguous, NaN where one does not apply.
    component_weights: w, factor of each.
    weights: a row counts where this is positive; None counts all.
    group_size: G; at least 2, must divide N.
    ddof: subtracted from the number of rows in all variances.
    eps: added to all standard deviations.

  Returns:
    Advantages, dimensionless, summing to zero in each group; the scale of a
    component does not matter but for eps.

  Raises:
    ValueError: if group_size < 2, ddof is not 0 or 1, or eps <= 0.

  References:
    GDPO, arXiv:2601.05242.
  """
  sums = normalized_sum(
    components,
    component_weights,
    weights,
    group_size=group_size,
    ddof=ddof,
    eps=eps,
  )
  counted = group.counted_rows(weights, sums)
  scorable = counted & ~jnp.isnan(components).all(axis=1)
  return batch.batch_scaled(
    sums, scorable.astype(sums.dtype), ddof=ddof, eps=eps
  )


def _weighted(values, component_weights) -> Float[Array, "N K"]:
  factors = component_weights[None, :]
  return jnp.where(jnp.isnan(values), 0.0, values) * factors
