"""Anchored weight decay: parameters are pulled to where they started, not to 0.

With d = params - start after an update, and amount = learning rate * strength:

    l2       params - amount d       = start + (1 - amount) d
    l1       start + sign(d) max(|d| - amount, 0)      (the proximal step)
    l1_sign  params - amount sign(d)                   (a subgradient step)

The paper gives the penalties; that their step is scaled by the learning rate,
and that l1 is taken as a proximal step, is our reading.

References:
  Anchored weight decay for evolution strategies, arXiv:2605.30148.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

Norm = Literal["l1", "l2", "l1_sign"]
NORMS: tuple[Norm, ...] = ("l1", "l2", "l1_sign")


class AnchorState(NamedTuple):
  """What anchored_weight_decay remembers.

  Attributes:
    count: [] int32, updates so far, which the learning rate depends on.
    start: the parameters that drift is measured from, a copy.
  """

  count: Int[Array, ""]
  start: Any


def pulled(params: Any, start: Any, amount: Any, *, norm: Norm) -> Any:
  """Parameters after one step of the decay; those without drift stay.

  Equals `params` to the bit where amount is 0. In l1 a drift of at most
  `amount` becomes exactly 0, in l2 all shrink by the factor 1 - amount; a step
  of l1_sign overshoots where the drift is smaller than it.

  Args:
    params: pytree, after the update.
    start: the same tree, of any floating dtypes.
    amount: [] learning rate * strength, at least 0, below 1 in l2; in l1 in
      units of the parameters.
    norm: "l1", "l2" or "l1_sign".

  Returns:
    The tree in the dtypes of `params`; computed in at least float32.
  """
  _check_norm(norm)
  chex.assert_trees_all_equal_shapes(params, start)

  def one(leaf, origin):
    kind = jnp.promote_types(leaf.dtype, jnp.float32)
    now, origin = leaf.astype(kind), origin.astype(kind)
    drift = now - origin
    if norm == "l2":
      return (now - amount * drift).astype(leaf.dtype)
    moved = now - amount * jnp.sign(drift)
    if norm == "l1":  # start itself, not what rounding leaves of it
      moved = jnp.where(jnp.abs(drift) <= amount, origin, moved)
    return moved.astype(leaf.dtype)

  return jax.tree.map(one, params, start)


def anchored_weight_decay(
  learning_rate: optax.ScalarOrSchedule,
  strength: float,
  *,
  norm: Norm = "l1",
  dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  """Pulls to the parameters at init(); stands last in a chain.

    changes -> pulled(params + changes, start, rate * strength) - params

  The sum params + changes is rounded by whoever applies it, so a drift that l1
  sets to 0 may keep the last bit of the larger of the two for one step.

  Args:
    learning_rate: that of the chain, a number or optax schedule.
    strength: lambda; 0 leaves every update as it is.
    norm: as in pulled().
    dtype: that the start is kept in; None: that of the parameters. bfloat16
      halves its memory and pulls to the rounded start.

  Raises:
    ValueError: if the strength or the norm cannot be, or if a constant
      learning rate times the strength reaches 1 in l2.
  """
  constant = None if callable(learning_rate) else learning_rate
  check_anchor(strength, norm=norm, learning_rate=constant)

  def init(params):
    kept = lambda leaf: jnp.array(leaf, dtype or leaf.dtype, copy=True)  # noqa: E731
    return AnchorState(jnp.zeros((), jnp.int32), jax.tree.map(kept, params))

  def update(changes, state, params):
    count = optax.safe_increment(state.count)
    if not strength:
      return changes, AnchorState(count, state.start)
    rate = learning_rate if constant is not None else learning_rate(state.count)
    moved = jax.tree.map(jnp.add, params, changes)
    moved = pulled(moved, state.start, rate * strength, norm=norm)
    changes = jax.tree.map(jnp.subtract, moved, params)
    return changes, AnchorState(count, state.start)

  return optax.GradientTransformation(init, update)


def drift_norm(params: Any, start: Any) -> Float[Array, ""]:
  """||params - start||, in float32."""
  chex.assert_trees_all_equal_shapes(params, start)
  low = lambda tree: optax.tree.cast(tree, jnp.float32)  # noqa: E731
  return optax.tree.norm(optax.tree.sub(low(params), low(start)))


def check_anchor(
  strength: float, *, norm: str, learning_rate: float | None = None
) -> None:
  """Raises ValueError, one line, unless the decay can be.

  Args:
    strength: lambda.
    norm: a name of NORMS.
    learning_rate: the largest; None: not known.
  """
  if not 0 <= strength < float("inf"):
    raise ValueError(
      f"the anchor's strength must be 0 or more and finite, got {strength}."
    )
  _check_norm(norm)
  if norm == "l2" and learning_rate and learning_rate * strength >= 1:
    raise ValueError(
      "learning rate * strength of an l2 anchor must be below 1, got"
      f" {learning_rate:g} * {strength:g}: it would jump beyond the start."
    )


def _check_norm(norm: str) -> None:
  if norm not in NORMS:
    raise ValueError(
      f"the anchor's norm must be one of {', '.join(NORMS)}; got {norm!r}."
    )
