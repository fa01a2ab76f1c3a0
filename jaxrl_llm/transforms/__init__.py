"""Rollout to rollout, with state: chain, filters, shaping, corrections.

What is named here is the mathematics inside, on bare arrays; the transforms
themselves are in the modules, with those of `chain` to join them.
"""

from jaxrl_llm.transforms.coefficients import next_entropy_coef, next_kl_coef
from jaxrl_llm.transforms.entropy_mask import masked_quantile, top_entropy
from jaxrl_llm.transforms.filters import uniform_groups
from jaxrl_llm.transforms.kl_in_reward import reward_kl
from jaxrl_llm.transforms.mismatch import mismatch_metrics, weight_metrics
from jaxrl_llm.transforms.off_policy_masks import (
  off_policy_sequence_mask,
  second_moment_mask,
  total_variation_mask,
)
from jaxrl_llm.transforms.rank_guidance import rank_bonus, rank_signal
from jaxrl_llm.transforms.rejection import rejection_mask
from jaxrl_llm.transforms.rollout_correction import (
  log_mismatch,
  log_weights,
  rollout_weights,
)
from jaxrl_llm.transforms.shaping import soft_overlong, stop_properly

__all__ = [
  "log_mismatch",
  "log_weights",
  "masked_quantile",
  "mismatch_metrics",
  "next_entropy_coef",
  "next_kl_coef",
  "off_policy_sequence_mask",
  "rank_bonus",
  "rank_signal",
  "rejection_mask",
  "reward_kl",
  "rollout_weights",
  "second_moment_mask",
  "soft_overlong",
  "stop_properly",
  "top_entropy",
  "total_variation_mask",
  "uniform_groups",
  "weight_metrics",
]
