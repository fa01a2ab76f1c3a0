"""Credit to scalar: ratios, surrogates, KL, penalties, weighting, policy.

What is named here takes and returns arrays; nothing of a trainer is needed.
Estimators of the KL are in `kl`: kl.k1, kl.k3, kl.exact and others.
"""

from jaxrl_llm.objectives import kl
from jaxrl_llm.objectives.alignment import signed_divergence
from jaxrl_llm.objectives.calibration import (
  elementwise_coefficient,
  inner_coefficient,
)
from jaxrl_llm.objectives.covariance import (
  clip_cov_drop,
  kl_cov_select,
  kl_cov_surrogate,
  token_covariance,
)
from jaxrl_llm.objectives.divergence import (
  binary_kl_keep,
  binary_tv_keep,
  dppo_surrogate,
  dro_surrogate,
  jensen_shannon,
)
from jaxrl_llm.objectives.geometric import geometric_mean_surrogate
from jaxrl_llm.objectives.ratios import (
  sequence_log_ratio,
  sequence_log_weight,
  sequence_sum_log_ratio,
  sequence_token_log_ratio,
  token_log_ratio,
)
from jaxrl_llm.objectives.soft_clips import (
  cispo_surrogate,
  sapo_surrogate,
  vespo_surrogate,
)
from jaxrl_llm.objectives.surrogates import (
  clipped_surrogate,
  dual_clip_surrogate,
  reinforce_surrogate,
  two_sided_surrogate,
  unclipped_surrogate,
)
from jaxrl_llm.objectives.values import clipped_value_loss
from jaxrl_llm.objectives.weighting import (
  fixed_length,
  sequence_mean,
  sequence_sum,
  token_mean,
  token_sum,
)

__all__ = [
  "jensen_shannon",
  "signed_divergence",
  "binary_kl_keep",
  "binary_tv_keep",
  "cispo_surrogate",
  "clip_cov_drop",
  "clipped_surrogate",
  "clipped_value_loss",
  "dppo_surrogate",
  "dro_surrogate",
  "dual_clip_surrogate",
  "elementwise_coefficient",
  "fixed_length",
  "geometric_mean_surrogate",
  "inner_coefficient",
  "kl",
  "kl_cov_select",
  "kl_cov_surrogate",
  "reinforce_surrogate",
  "sapo_surrogate",
  "sequence_log_ratio",
  "sequence_log_weight",
  "sequence_mean",
  "sequence_sum",
  "sequence_sum_log_ratio",
  "sequence_token_log_ratio",
  "token_covariance",
  "token_log_ratio",
  "token_mean",
  "token_sum",
  "two_sided_surrogate",
  "unclipped_surrogate",
  "vespo_surrogate",
]
