"""PEARL: each reward snapped to a few levels, standardised, only then added.

    D_ik = level j of reward k,  j = number of its edges <= X_ik
    Z_ik = (D_ik - mean_gk) / (std_gk + eps),  0 where std_gk is 0
    A_i  = sum_k w_k Z_ik,  over (std(A) + eps) of the batch if batch_renorm
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)]

No reward drowns another by its variance: what counts is w alone. Differences
within a level teach nothing.

Against GRPO it changes:
  advantage  levels, one z-score a reward, added
  objective  no KL

X and w are reward_components and reward_weights of the rollout's extras, as for
GDPO, which this is without levels and with batch_renorm. Our readings, of an
abstract: levels, where the edges are by default, all constants, and that
batch_renorm is off.

PEARL, 2026, arXiv:2605.29582.
"""

import dataclasses
from fractions import Fraction
from typing import Literal

from jaxrl_llm.advantages import components, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting

Lists = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pearl(base.MethodConfig):
  """PEARL with three levels at thirds."""

  edges: str = ""
  """rising, of each reward, "0.5_0.9,-1_1/3" for two, or one list for all;
  empty: at thirds of what each ranges over in the batch"""
  levels: str = "0_0.5_1"
  """of each reward, one more than its edges, or one list for all"""
  batch_renorm: bool = False
  """divides the sums by their std over the batch, as GDPO does"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the stds, in units of levels"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    edges = _lists("edges", self.edges) if self.edges else ()
    levels = _lists("levels", self.levels)
    _check(edges, levels)
    return base.Method(
      advantage=lambda rollout: self._credit(rollout, edges, levels),
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )

  def _credit(self, rollout, edges, levels):
    parts, factors = components.of_rollout(rollout)
    edges = edges or components.thirds(parts, rollout.weights)
    add = components.gdpo if self.batch_renorm else components.normalized_sum
    return add(
      components.discretized(parts, edges, levels),
      factors,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=self.ddof,
      eps=self.eps,
    )


def _lists(name: str, text: str) -> Lists:
  """Of "0_1/2,3_4": ((0, 1/2), (3, 4))."""
  try:
    return tuple(
      tuple(float(Fraction(number)) for number in part.split("_"))
      for part in text.split(",")
    )
  except (ValueError, ArithmeticError):
    raise ValueError(
      f"{name} must be numbers joined by _, one list a reward, by commas; got"
      f" {text!r}."
    ) from None


def _check(edges: Lists, levels: Lists) -> None:
  """Raises ValueError unless edges rise and levels are one more."""
  for each in edges:
    if list(each) != sorted(set(each)):
      raise ValueError(f"edges must rise, got {each}.")
  sizes = [len(each) for each in edges or ((1, 2),)]  # thirds are two
  wanted = [len(each) - 1 for each in levels]
  count = max(len(sizes), len(wanted))
  if sizes * (count // len(sizes)) != wanted * (count // len(wanted)):
    raise ValueError(
      "levels must be one more than edges (two, at thirds), for one reward or"
      f" each; got {levels}."
    )
