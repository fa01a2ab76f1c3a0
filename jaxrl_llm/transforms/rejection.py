"""Masks that drop tokens or rows on which trainer and sampler disagree.

With L = clip(o - u, -20, 20), o the trainer's log-probability of a token and u
the sampler's, a rule bounds one statistic at one level:

    ratio = exp(L)    k1 = -L    k2 = L^2 / 2    k3 = exp(L) - 1 - L

k1, k2 and k3 estimate KL(sampler || trainer) in nats. THE TRAP of k1: as in
verl its bounds are given as ratios, log(low) <= k1 <= log(high), but k1 is
minus L, so it is the INVERSE ratio, sampler over trainer, that is kept in
[low, high]: "0.5_5" keeps trainer over sampler in [0.2, 2]. Where the ratio
itself is meant, name the statistic "ratio".
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.transforms import rollout_correction

STATISTICS = ("ratio", "k1", "k2", "k3")
LEVELS = ("token", "seq_sum", "seq_mean", "seq_max")
# verl has those without "ratio", less seq_max_k1.
RULES = tuple(f"{level}_{name}" for level in LEVELS for name in STATISTICS)


class Rule(NamedTuple):
  """Keeps what has its statistic within bounds.

  Attributes:
    name: one of RULES, "level_statistic".
    low: lower bound, a ratio; 0 is none, as it must be for k2 and k3.
    high: upper bound: a ratio, for k2 and k3 nats.
  """

  name: str
  low: float = 0.0
  high: float = math.inf


def rejection_mask(
  old_logprobs: Float[Array, "N T"],
  rollout_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  rules: Sequence[Rule],
) -> Bool[Array, "N T"]:
  """The part of the mask that every rule keeps.

    token:    each token on its own statistic s
    seq_sum:  rows on sum_t s;  seq_mean: sum_t s / n_i;  seq_max: max_t s

  For "ratio" rows are compared on the exponential of the sum, mean or maximum
  of L: seq_sum_ratio is the product and seq_mean_ratio the geometric mean.

  Args:
    old_logprobs: the trainer's at the weights of the rollout, in nats.
    rollout_logprobs: the sampler's, in nats.
    mask: true on the policy's own tokens; the rest may hold anything.
    rules: joined with AND; each looks at the mask as it came.

  Returns:
    A mask within `mask`; all of it where the two policies agree.

  References:
    verl, rollout_corr_helper.py (rollout_rs); Li et al. 2025, "When Speed
    Kills Stability".
  """
  keep = mask
  mismatch = rollout_correction.log_mismatch(
    old_logprobs, rollout_logprobs, mask
  )
  log_ratio = rollout_correction.log_weights(mismatch, mask)
  for rule in rules:
    check_rule(rule)
    level, name = rule.name.rsplit("_", 1)
    value = _aggregated(_statistic(log_ratio, name), mask, level)
    low, high = _bounds(rule, name)
    keep &= (value >= low) & (value <= high)
  return keep


def parse(names: str, thresholds: str | float) -> tuple[Rule, ...]:
  """Rules from verl's two options.

  Args:
    names: "token_k1,seq_mean_k3" (verl rollout_rs); "" for no rule.
    thresholds: one for each name, or one for all: "0.5_2,0.1" (verl
      rollout_rs_threshold). "low_high" for k1 and ratio, where a single
      number is high and low is 1 / high; one number for k2 and k3.

  Raises:
    ValueError: one line, for an unknown rule, too few or too many thresholds,
      or bounds out of order.
  """
  parts = [part.strip() for part in names.split(",") if part.strip()]
  bounds = [part.strip() for part in str(thresholds).split(",") if part.strip()]
  if len(bounds) == 1:
    bounds *= len(parts)
  if parts and len(bounds) != len(parts):
    raise ValueError(
      f"thresholds must be one or {len(parts)}, as many as rules, got"
      f" {thresholds!r} for {names!r}."
    )
  rules = tuple(map(_parsed, parts, bounds if parts else ()))
  for rule in rules:
    check_rule(rule)
  return rules


def check_rule(rule: Rule) -> None:
  """Raises ValueError unless the name is known and 0 <= low < high."""
  if rule.name not in RULES:
    raise ValueError(
      f"a rule must be one of {', '.join(RULES)}; got {rule.name!r}."
    )
  if not 0 <= rule.low < rule.high:
    raise ValueError(
      f"the bounds of {rule.name} must hold 0 <= low < high, got low"
      f" {rule.low} and high {rule.high}."
    )
  if rule.low and rule.name.endswith(("k2", "k3")):
    raise ValueError(
      f"{rule.name} is never negative and has no lower bound, got {rule.low}."
    )


def _parsed(name, bounds) -> Rule:
  low, _, high = bounds.rpartition("_")
  try:
    high = float(high)
    two_sided = name.endswith(("k1", "ratio"))
    low = float(low) if low else 1.0 / high if two_sided else 0.0
  except (ValueError, ZeroDivisionError):
    raise ValueError(
      f"a threshold must be 'high' or 'low_high', got {bounds!r} for {name}."
    ) from None
  return Rule(name, low, high)


def _statistic(log_ratio, name) -> Float[Array, "N T"]:
  if name == "k1":
    return -log_ratio
  if name == "k2":
    return 0.5 * log_ratio**2
  if name == "k3":
    return jnp.expm1(log_ratio) - log_ratio
  return log_ratio  # bounded by the logarithms of its bounds


def _aggregated(values, mask, level):
  """[N, T], or [N, 1] for rows; 0 for a row without tokens."""
  if level == "token":
    return values
  if level == "seq_max":
    highest = jnp.where(mask, values, -jnp.inf).max(axis=1, keepdims=True)
    return jnp.where(mask.any(axis=1, keepdims=True), highest, 0.0)
  total = jnp.where(mask, values, 0.0).sum(axis=1, keepdims=True)
  if level == "seq_sum":
    return total
  return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def _bounds(rule, name) -> tuple[float, float]:
  if name in ("k2", "k3"):  # at equality rounding may leave k3 below 0
    return -math.inf, rule.high
  return math.log(rule.low) if rule.low else -math.inf, math.log(rule.high)
