"""The sampler's copy of the parameters, made from the trainer's once a step.

    trainer   float32, cut by sharding.RULES: over "fsdp" and "tensor"
    sampler   the model's dtype, cut by sharding.ROLLOUT_RULES: over "tensor"

One program does both, the rounding first, so that bfloat16 is what travels. A
parameter that already lies right is passed on as it is: on one device, and on
a mesh of "data" alone in float32, nothing is copied.

The copy is freed, not kept to be donated to its successor: then it is not
there while the trainer needs the memory.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrl_llm.distributed import costs, sharding
from jaxrl_llm.models import api, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synced:
  """Parameters for a sampler; a context manager that frees them.

  Attributes:
    params: what engine.make_generate's function takes.
    received: bytes that came to each device (to the one that got most).
    seconds: that it took, with the first one's compilation.
    copies: the arrays that were made for the sampler alone.
  """

  params: api.Params
  received: float = 0.0
  seconds: float = 0.0
  copies: tuple[jax.Array, ...] = ()

  def free(self) -> None:
    """Gives the memory of the copies back; a second call does nothing."""
    for leaf in self.copies:
      if not leaf.is_deleted():
        leaf.delete()

  def metrics(self) -> dict[str, float]:
    """sync/bytes, and seconds as of a phase: time/sync."""
    return {"sync/bytes": self.received, "time/sync": self.seconds}

  def __enter__(self) -> "Synced":
    """Returns itself."""
    return self

  def __exit__(self, *exc) -> None:
    """Frees."""
    self.free()


class WeightSync:
  """Maps the trainer's parameters to the sampler's, Synced."""

  def __init__(
    self,
    model: api.LanguageModel,
    mesh: Mesh | None = None,
    *,
    rollout_mesh: Mesh | None = None,
    keep: bool = False,
  ):
    """Nothing is compiled yet.

    Args:
      model: whose dtype the sampler computes in.
      mesh: of the trainer; None is one device.
      rollout_mesh: of a sampler with devices of its own; its axis "tensor" is
        as long as the trainer's. None: the sampler has the trainer's devices.
      keep: the copy outlives the trainer's next step, which uses its
        parameters up: nothing is passed on, all is copied.
    """
    self.mesh, self.rollout_mesh = mesh, rollout_mesh or mesh
    self._model = model
    self._apart = rollout_mesh is not None
    self._keep = keep and not self._apart
    self._compiled = None

  def __call__(self, params: api.Params) -> Synced:
    """Makes the copy and waits for it.

    Args:
      params: of the trainer, placed as in every earlier call.
    """
    start = time.perf_counter()
    synced = self._laid(params)
    if self._apart:
      synced = self._sent(synced)
    jax.block_until_ready(synced.copies)
    return dataclasses.replace(synced, seconds=time.perf_counter() - start)

  def targets(self, params: Any) -> Any:
    """Shapes, dtypes and shardings of the sampler's parameters.

    Args:
      params: of the trainer, arrays or shapes with shardings.
    """
    return self._targets(params, self.rollout_mesh)

  def copies(self, params: Any) -> Any:
    """Of the targets those that are copied, None for what is passed on.

    Args: as targets().
    """
    moved = params if self._apart else self._moved(params)
    return self._targets(moved, self.rollout_mesh)

  def trace(self, params: Any) -> jax.stages.Traced | None:
    """The program on the trainer's devices; None if nothing is to be done.

    Args: as targets().
    """
    moved = self._moved(params)
    return (
      self._program(params).trace(moved) if jax.tree.leaves(moved) else None
    )

  def _laid(self, params) -> Synced:
    """On the trainer's devices."""
    moved = self._moved(params)
    if not jax.tree.leaves(moved):
      return Synced(params=params)
    if self._compiled is None:
      self._compiled = self._program(params).lower(moved).compile()
      self._received = self._counted(params)
    made = self._compiled(moved)
    return Synced(
      params=_first_of(made, params),
      received=self._received,
      copies=tuple(jax.tree.leaves(made)),
    )

  def _sent(self, laid: Synced) -> Synced:
    """From the trainer's devices to the sampler's; what was laid is freed."""
    targets = self._targets(laid.params, self.rollout_mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, targets)
    sent = jax.block_until_ready(jax.device_put(laid.params, places))
    laid.free()
    return Synced(
      params=sent,
      received=max(laid.received, costs.held_bytes(targets)),
      copies=tuple(jax.tree.leaves(sent)),
    )

  def _counted(self, params) -> float:
    """Bytes that the program brings to each device."""
    kinds = costs.received(self._compiled)
    if kinds is None:  # at most all that lies wrong
      moved = self._targets(self._moved(params), self.mesh)
      return costs.held_bytes(moved)
    return float(sum(kinds.values()))

  def _program(self, params):
    """jit: parameters that lie wrong, the others None -> the same laid right.

    A copy in the dtype that it has is written as one: else the argument
    itself would come back.
    """
    moved = self._moved(params)

    def lay(moved):
      rounded = linear.freeze(moved, self._model.dtype)
      if self.mesh is not None:  # rounded where they lie, then moved
        rounded = jax.tree.map(jax.lax.with_sharding_constraint, rounded, here)
      return jax.tree.map(jnp.copy, rounded)

    if self.mesh is None:
      return jax.jit(lay)
    here = jax.tree.map(lambda leaf: leaf.sharding, moved)
    there = self._targets(moved, self.mesh)
    there = jax.tree.map(lambda leaf: leaf.sharding, there)
    return jax.jit(lay, out_shardings=there)

  def _moved(self, params) -> Any:
    """The parameters with None for those that lie right already."""
    if self.mesh is None and not self._keep and not self._apart:
      return jax.tree.map(lambda leaf: None, params)
    targets = self._targets(params, self.mesh)

    def wrong(leaf, target):
      same = leaf.dtype == target.dtype and (
        self.mesh is None
        or leaf.sharding.is_equivalent_to(target.sharding, len(leaf.shape))
      )
      return None if same and not self._keep else leaf

    return jax.tree.map(wrong, params, targets)

  def _targets(self, params, mesh: Mesh | None):
    """Shapes as the sampler wants them, laid on a mesh."""
    frozen = jax.eval_shape(
      lambda tree: linear.freeze(tree, self._model.dtype), params
    )
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    if mesh is not None:
      places = sharding.parameter_shardings(
        self._model.config, frozen, mesh, sharding.ROLLOUT_RULES
      )
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      frozen,
      places,
    )


def _first_of(made, params):
  """The tree of what was made, and of the parameters where nothing was."""
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    made,
    params,
    is_leaf=lambda leaf: leaf is None,
  )
