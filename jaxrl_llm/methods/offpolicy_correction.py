"""Off-policy correction: any method, weighed for the gap to its sampler.

TIS, MIS / IcePop, seq-mask-TIS and rejection, around another method. With o
the trainer's log-probability before the update and u the sampler's,

    w    = exp(o - u), by token, or of the row: its product or geometric mean
    loss = sum_it v_it w_it l_it + (KL and other terms, not weighed)

v and l the weights and the policy loss of the method, w bounded:
truncated (TIS), 0 out of bounds (MIS, IcePop), or the token's own ratio where
that of its row is in bounds, else 0 (seq-mask-TIS). Rules of rejection drop
tokens or rows besides. w is a constant, and 1 where the two agree.

Against GRPO it changes:
  transform  after the method's own: writes w, drops what the rules reject
  selection  with `variation`, drops tokens that would widen a gap

Around a method whose ratio is that of the sequence (RLOO, GSPO) a token's
weight acts on its whole row: give it a level of rows.

The temperature, and any top-p or top-k, must be in both log-probabilities;
here both are those of the whole vocabulary at the sampling temperature.

Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy
RL Training" (TIS); Ling Team 2025 (IcePop), arXiv:2510.18855.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.methods import base, grpo
from jaxrl_llm.transforms import (
  chain,
  off_policy,
  off_policy_masks,
  rejection,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyCorrection(base.MethodConfig):
  """Token-level TIS at 2 by default: the least variance, nothing dropped."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is corrected: any method"""
  level: Literal["token", "sequence", "geometric", "none"] = "token"
  """ratio of the token, product over its row, geometric mean of its row, or
  no weights (TRL vllm_importance_sampling_mode, verl rollout_is)"""
  mode: Literal["truncate", "mask", "seq_mask"] = "truncate"
  """out of bounds: to the bound (TIS), to 0 (MIS, IcePop), or the whole row to
  0 by its geometric mean (seq-mask-TIS)"""
  low: float = 0.0
  """lower bound of the ratio, in [0, 1]; 0: none (IcePop, OpenRLHF 0.5)"""
  high: float = 2.0
  """upper bound of the ratio, at least 1 (verl rollout_is_threshold 2, TRL
  vllm_importance_sampling_clip_max 3 by sequence, IcePop and OpenRLHF 5)"""
  normalize: bool = False
  """divides the weights by their mean (verl rollout_is_batch_normalize)"""
  reject: str = ""
  """rules, by commas, that a token must all pass: token, seq_sum, seq_mean or
  seq_max, then _ratio, _k1, _k2 or _k3 (verl rollout_rs); beware that k1, as
  in verl, bounds the INVERSE ratio"""
  reject_threshold: str = "0.5_2"
  """for each rule: "low_high" or "high" for ratio and k1, "high" in nats for
  k2 and k3 (verl rollout_rs_threshold)"""
  variation: float = 0.0
  """bound of a row's mean |w - 1|, beyond which tokens that would widen the
  gap are dropped (open-instruct rho_mask_tv_divergence); 0: off"""
  denominator: Literal["recounted", "original"] = "recounted"
  """whether rejected tokens leave the denominators (verl) or stay in them
  (AReaL); recounted by default: a step keeps its size"""

  def build(self) -> base.Method:
    """Composes the method."""
    if not 0 <= self.variation < float("inf"):
      raise ValueError(
        f"variation must be 0 or more and finite, got {self.variation}."
      )
    off_policy.check_denominator(self.denominator)
    inner = self.method.build()
    return dataclasses.replace(
      inner,
      transform=chain.chain(inner.transform, *self._transforms()),
      selection=self._selection(inner.selection),
      needs=inner.needs | {"old_scores"},
    )

  def _transforms(self):
    if self.level != "none":
      check_band(self.low, self.high)
      yield off_policy.importance_weighted(
        level=self.level,
        mode=self.mode,
        low=self.low,
        high=self.high,
        normalize=self.normalize,
      )
    if self.reject:
      yield off_policy.rejected_by_rules(
        rejection.parse(self.reject, self.reject_threshold),
        denominator=self.denominator,
      )

  def _selection(self, select):
    if not self.variation:
      return select

    def chosen(rollout, advantages):
      rollout = select(rollout, advantages)
      rollout, old, sampled, counted = off_policy.trainer_and_sampler(rollout)
      keep = off_policy_masks.total_variation_mask(
        old, sampled, advantages, counted, high=self.variation
      )
      return off_policy.without(rollout, keep, denominator=self.denominator)

    return chosen


def check_band(low: float, high: float) -> None:
  """Raises ValueError unless 0 <= low <= 1 <= high and low < high."""
  if not 0 <= low <= 1 <= high or low == high:
    raise ValueError(
      f"low must be in [0, 1] and high at least 1, got {low} and {high}: a"
      " ratio of 1, no gap, must be within."
    )
