"""Running statistics carried from step to step."""

from flax import struct
import jax
import jax.numpy as jnp

from jaxrl_llm import types


@struct.dataclass
class BaselineState:
  """What running_baseline remembers."""

  mean: jax.Array  # [] float32, decayed sum of mean rewards, not debiased
  count: jax.Array  # [] int32, batches seen that had a counted row


def running_baseline(decay: float = 0.99) -> types.RolloutTransform:
  """Writes extras["baseline"]: the mean reward BEFORE this batch, debiased.

    m <- decay * m + (1 - decay) * mean(rewards),  baseline = m / (1 - decay^k)

  after k batches; 0 before the first. Rows of weight 0 are left out, and a
  batch without any other is not a batch.

  Args:
    decay: in [0, 1).

  Returns:
    A transform with state BaselineState; extras["baseline"] is a scalar.

  Raises:
    ValueError: if decay is outside [0, 1).
  """
  if not 0.0 <= decay < 1.0:
    raise ValueError(f"decay must be in [0, 1), got {decay}.")

  def init():
    return BaselineState(
      mean=jnp.zeros((), jnp.float32), count=jnp.zeros((), jnp.int32)
    )

  def update(rollout, state):
    seen = jnp.where(state.count > 0, 1.0 - decay**state.count, 1.0)
    extras = rollout.extras | {"baseline": state.mean / seen}
    counted = rollout.weights > 0
    rows = counted.sum()
    total = jnp.where(counted, rollout.rewards, 0.0).sum()
    new = BaselineState(
      mean=decay * state.mean + (1.0 - decay) * total / jnp.maximum(rows, 1),
      count=state.count + 1,
    )
    state = jax.tree.map(lambda n, o: jnp.where(rows > 0, n, o), new, state)
    return rollout.replace(extras=extras), state

  return types.RolloutTransform(init, update)
