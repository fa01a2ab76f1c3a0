"""Transforms that correct a rollout for the gap to its sampler.

Weights and rejection read extras trainer_logprobs and sampler_logprobs, which
the step writes for a method that needs "old_scores", and make
rollout.old_logprobs the trainer's: the ratio of the policy loss then is policy
over trainer, whatever the run's `old_logprobs` says, and a weight of trainer
over sampler counts the gap once. Several of them multiply.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import types
from jaxrl_llm.transforms import chain, mismatch, rejection, rollout_correction

DENOMINATORS = ("recounted", "original")

# (old_logprobs, rollout_logprobs, mask) -> the part of the mask to keep.
MaskFn = Callable[[Array, Array, Array], Array]


def importance_weighted(
  *,
  level: str = "token",
  mode: str = "truncate",
  low: float = 0.0,
  high: float = 2.0,
  normalize: bool = False,
) -> types.RolloutTransform:
  """Writes extras["rollout_is"], and what it measures as metrics.

  Args:
    level: see rollout_correction.rollout_weights, as all that follow.
    mode: what happens out of bounds.
    low: bound of the ratio.
    high: bound of the ratio.
    normalize: divides by the batch's mean weight.

  Returns:
    A transform without state.

  Raises:
    ValueError: for an unknown level or mode, or bounds out of order.
  """
  band = {"level": level, "mode": mode, "low": low, "high": high}
  rollout_correction.check_weights(**band)

  def weigh(rollout):
    rollout, *pair = trainer_and_sampler(rollout)
    weights = rollout_correction.rollout_weights(*pair, **band)
    gap = rollout_correction.log_mismatch(*pair)
    log_ratio = rollout_correction.log_weights(gap, pair[-1], level=level)
    found = mismatch.mismatch_metrics(*pair) | mismatch.weight_metrics(
      weights, log_ratio, pair[-1], low=low, high=high
    )
    if normalize:
      weights = rollout_correction.batch_normalized(
        weights, pair[-1], by_row=level != "token"
      )
    return noted(multiplied(rollout, "rollout_is", weights), found)

  return chain.stateless(weigh)


def rejected(
  keep: MaskFn, *, denominator: str = "recounted"
) -> types.RolloutTransform:
  """Drops tokens from the mask, or only from the policy loss.

  Args:
    keep: the tokens that stay.
    denominator: "recounted" takes the others out of the mask, so out of every
      count, of the KL and of the advantages of single tokens (verl);
      "original" gives them loss 0 and leaves the counts (AReaL, OpenRLHF).

  Returns:
    A transform without state.

  Raises:
    ValueError: for an unknown denominator.
  """
  check_denominator(denominator)

  def drop(rollout):
    rollout, *pair = trainer_and_sampler(rollout)
    return without(rollout, keep(*pair), denominator=denominator)

  return chain.stateless(drop)


def rejected_by_rules(
  rules: tuple[rejection.Rule, ...], *, denominator: str = "recounted"
) -> types.RolloutTransform:
  """Drops tokens that any of rejection.RULES drops; see rejected."""
  return rejected(
    lambda *pair: rejection.rejection_mask(*pair, rules=rules),
    denominator=denominator,
  )


def sampler_remembered() -> types.RolloutTransform:
  """Writes extras["sampler_logprobs"] where the step did not have to.

  For an objective that compares the policy being trained with the sampler: it
  needs no forward of its own. The rollout comes with the sampler's
  log-probabilities as old_logprobs unless the step has replaced and kept them.
  """

  def remember(rollout):
    known = {"sampler_logprobs": rollout.old_logprobs}
    return rollout.replace(extras=known | rollout.extras)

  return chain.stateless(remember)


def trainer_and_sampler(
  rollout: types.Rollout,
) -> tuple[types.Rollout, Array, Array, Array]:
  """The rollout with the trainer's old_logprobs, both log-probs, what counts.

  Raises:
    ValueError: if the step did not write them.
  """
  missing = {"trainer_logprobs", "sampler_logprobs"} - rollout.extras.keys()
  if missing:
    raise ValueError(
      f"extras has no {sorted(missing)[0]}: the method must name 'old_scores'"
      " in `needs`."
    )
  trainer = rollout.extras["trainer_logprobs"]
  counted = rollout.mask & (rollout.weights > 0)[:, None]
  rollout = rollout.replace(old_logprobs=trainer)
  return rollout, trainer, rollout.extras["sampler_logprobs"], counted


def without(
  rollout: types.Rollout, keep: Bool[Array, "N T"], *, denominator: str
) -> types.Rollout:
  """The rollout less tokens, their share among the metrics."""
  counted = rollout.mask & (rollout.weights > 0)[:, None]
  rollout = noted(rollout, mismatch.rejected(counted, keep))
  if denominator == "recounted":
    return rollout.replace(mask=rollout.mask & (keep | ~counted))
  return multiplied(rollout, "keep", keep.astype(rollout.rewards.dtype))


def multiplied(
  rollout: types.Rollout, name: str, factor: Float[Array, "N T"]
) -> types.Rollout:
  """The rollout with a factor of its policy loss, times any there was."""
  factor = factor * rollout.extras.get(name, 1.0)
  factor = jnp.where(rollout.mask, factor, 0.0)
  return rollout.replace(extras=rollout.extras | {name: factor})


def noted(rollout: types.Rollout, found: types.Metrics) -> types.Rollout:
  """The rollout with scalars that the step will log."""
  found = {f"metric/{name}": value for name, value in found.items()}
  return rollout.replace(extras=rollout.extras | found)


def check_denominator(denominator: str) -> None:
  """Raises ValueError unless it is one of DENOMINATORS."""
  if denominator not in DENOMINATORS:
    raise ValueError(
      f"denominator must be one of {', '.join(DENOMINATORS)}; got"
      f" {denominator!r}."
    )
