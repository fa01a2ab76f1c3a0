"""The critic's loss: how far its values are from the returns."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.objectives import penalties


def clipped_value_loss(
  values: Float[Array, "N T"],
  returns: Float[Array, "N T"],
  old_values: Float[Array, "N T"],
  *,
  clip: float = 0.5,
) -> tuple[Float[Array, "N T"], dict[str, Float[Array, "N T"]]]:
  """Squared error that gains nothing by leaving the old values far behind.

    near = clip(v, v_old - clip, v_old + clip)
    loss = max((v - R)^2, (near - R)^2) / 2

  A token gives no gradient once its value has moved by more than `clip`
  towards its return. With clip = inf it is the squared error.

  Args:
    values: v, of the critic being trained.
    returns: R; constants.
    old_values: v_old, of the critic before the step; constants.
    clip: how far a value may move in a step, in units of reward; positive.

  Returns:
    The loss per token, and 1.0 where the clipped error is the larger:
    {"value_clip_fraction"}.

  Raises:
    ValueError: if clip is not positive.

  References:
    Schulman et al., OpenAI baselines ppo2 (2017; not in arXiv:1707.06347);
    verl, core_algos.py, compute_value_loss (cliprange_value 0.5).
  """
  check_value_clip(clip)
  chex.assert_equal_shape([values, returns, old_values])
  returns = jax.lax.stop_gradient(returns)
  old_values = jax.lax.stop_gradient(old_values)
  near = jnp.clip(values, old_values - clip, old_values + clip)
  free, bound = (values - returns) ** 2, (near - returns) ** 2
  clipped = (bound > free).astype(free.dtype)
  return 0.5 * jnp.maximum(free, bound), {"value_clip_fraction": clipped}


def value_penalties(
  *, coef: float = 1.0, clip: float = 0.5
) -> tuple[penalties.Penalty, ...]:
  """The critic's loss as a term of an objective, and its clipped share.

  Reads scores.values, extras["old_values"] and extras["returns"]; the share is
  measured only, with coefficient 0.

  Args:
    coef: multiplies the loss; 0 or more. With an optimizer of its own, whose
      steps do not depend on scale, a critic on a frozen trunk hardly notices.
    clip: see clipped_value_loss.

  Returns:
    Penalties "value_loss" and "value_clip_fraction".

  Raises:
    ValueError: if coef is negative or not finite, or clip is not positive.
  """
  check_value_clip(clip)
  if not 0 <= coef < float("inf"):
    raise ValueError(f"value_coef must be 0 or more and finite, got {coef}.")

  def loss(scores, rollout):
    return clipped_value_loss(*_read(scores, rollout), clip=clip)[0]

  def share(scores, rollout):
    _, metrics = clipped_value_loss(*_read(scores, rollout), clip=clip)
    return metrics["value_clip_fraction"]

  return (
    penalties.Penalty("value_loss", coef, loss),
    penalties.Penalty("value_clip_fraction", 0.0, share),
  )


def check_value_clip(clip: float) -> None:
  """Raises ValueError unless clip is positive."""
  if not clip > 0:
    raise ValueError(
      f"value_clip must be positive, got {clip}: a value could not move at"
      " all; inf does not clip."
    )


def _read(scores: types.Scores, rollout: types.Rollout) -> list[Array]:
  """Values, returns and old values; 0 outside the mask, whatever is there."""
  found = {
    "scores.values": scores.values,
    "extras['returns']": rollout.extras.get("returns"),
    "extras['old_values']": rollout.extras.get("old_values"),
  }
  for name, array in found.items():
    if array is None:
      raise ValueError(
        f"{name} is missing: the method must name 'values' and 'old_scores'"
        " in `needs`, and write 'returns' in its selection."
      )
  return [jnp.where(rollout.mask, array, 0.0) for array in found.values()]
