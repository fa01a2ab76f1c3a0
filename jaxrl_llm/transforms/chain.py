"""Ways to build and join rollout transforms."""

from collections.abc import Callable

from jaxrl_llm import types


def identity() -> types.RolloutTransform:
  """Changes nothing and remembers nothing."""
  return stateless(lambda rollout: rollout)


def stateless(
  function: Callable[[types.Rollout], types.Rollout],
) -> types.RolloutTransform:
  """A transform without memory.

  Args:
    function: rollout -> rollout, jittable.
  """
  return types.RolloutTransform(
    init=lambda: (), update=lambda rollout, state: (function(rollout), state)
  )


def chain(*parts: types.RolloutTransform) -> types.RolloutTransform:
  """Applies transforms one after the other; its state is the tuple of theirs.

  Args:
    *parts: from first to last.
  """

  def init():
    return tuple(part.init() for part in parts)

  def update(rollout, state):
    new = []
    for part, own in zip(parts, state, strict=True):
      rollout, own = part.update(rollout, own)
      new.append(own)
    return rollout, tuple(new)

  def observe(state, metrics):
    pairs = zip(parts, state, strict=True)
    return tuple(part.observe(own, metrics) for part, own in pairs)

  return types.RolloutTransform(init, update, observe)
