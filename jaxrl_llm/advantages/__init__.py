"""Reward to credit: group, batch, baselines, components, tokens, critics.

The functions take and return arrays; nothing of a trainer is needed.
"""

from jaxrl_llm.advantages.baselines import (
  best_minus_second,
  greedy_baseline,
  length_weighted,
  mean_scaled,
  rescaled_centred,
  virtual_normalized,
)
from jaxrl_llm.advantages.batch import batch_normalized, batch_scaled
from jaxrl_llm.advantages.beta import (
  beta_normalized,
  beta_normalized_components,
)
from jaxrl_llm.advantages.components import (
  combined,
  discretized,
  gdpo,
  normalized_sum,
)
from jaxrl_llm.advantages.confidence import confidence_shifted
from jaxrl_llm.advantages.consistency import between_prompts
from jaxrl_llm.advantages.gae import explained_variance, generalized_advantages
from jaxrl_llm.advantages.group import (
  group_centred,
  group_normalized,
  leave_one_out,
  leave_one_out_normalized,
)
from jaxrl_llm.advantages.halves import conditional_advantages
from jaxrl_llm.advantages.hidden_rank import effective_rank, rank_dynamics
from jaxrl_llm.advantages.optimal_token import (
  optimal_token_baseline,
  tir_optimal_token_baseline,
)
from jaxrl_llm.advantages.reshaping import (
  difficulty_reshaped,
  hysteretic,
  position_shaped,
  positive_per_negative,
)
from jaxrl_llm.advantages.success_counts import success_counted
from jaxrl_llm.advantages.token import (
  discounted_returns,
  kl_penalized,
  kl_penalized_outcome,
  last_token_rewards,
  whiten,
)

__all__ = [
  "batch_normalized",
  "batch_scaled",
  "best_minus_second",
  "beta_normalized",
  "beta_normalized_components",
  "between_prompts",
  "combined",
  "confidence_shifted",
  "conditional_advantages",
  "difficulty_reshaped",
  "discounted_returns",
  "discretized",
  "effective_rank",
  "explained_variance",
  "gdpo",
  "generalized_advantages",
  "greedy_baseline",
  "group_centred",
  "group_normalized",
  "hysteretic",
  "kl_penalized",
  "kl_penalized_outcome",
  "last_token_rewards",
  "leave_one_out",
  "leave_one_out_normalized",
  "length_weighted",
  "mean_scaled",
  "normalized_sum",
  "optimal_token_baseline",
  "position_shaped",
  "positive_per_negative",
  "rescaled_centred",
  "rank_dynamics",
  "success_counted",
  "tir_optimal_token_baseline",
  "virtual_normalized",
  "whiten",
]
