"""HPO: negative advantages count less, by a constant or, A-HPO, by the batch.

    w_i  = 1 if A_i >= 0 else alpha
    loss = sum_it w_i [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M
    alpha = clip(count(A > 0) / count(A < 0), alpha_min, 1)      if adaptive

with A as in GRPO and M the number of tokens. Where successes are rare, failures
would be nearly all of the update. alpha = 1 is GRPO with a mean over tokens,
alpha = 0 learns from successes alone.

Against GRPO it changes:
  transform  adaptive: counts signs over the whole batch, logs alpha
  advantage  times alpha where negative; no sum of zero
  weighting  every token of the batch counts the same
  objective  no KL

A-HPO is adaptive = True. Our readings, of an abstract and a digest: alpha_min,
eps, and that the loss is divided by all tokens of the batch. Zero advantages
are of neither sign.

HPO, Hysteretic Policy Optimization, 2026, arXiv:2605.30201.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group, reshaping
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.transforms import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hpo(base.MethodConfig):
  """HPO with the best constant of the paper; adaptive for A-HPO."""

  alpha: float = 0.6
  """factor of negative advantages unless adaptive; [0, 1]"""
  adaptive: bool = False
  """A-HPO: alpha from the signs in the batch"""
  alpha_min: float = 0.1
  """smallest adaptive alpha; [0, 1]"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    for name in ("alpha", "alpha_min"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(
          f"{name} must be in [0, 1], got {getattr(self, name)}."
        )
    estimate = base.from_rewards(
      group.group_normalized, ddof=self.ddof, eps=self.eps
    )
    adapt = chain.stateless(lambda rollout: self._adapt(rollout, estimate))
    return base.Method(
      transform=adapt if self.adaptive else chain.identity(),
      advantage=lambda rollout: reshaping.hysteretic(
        estimate(rollout),
        alpha=rollout.extras["metric/alpha"] if self.adaptive else self.alpha,
      ),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
      ),
    )

  def _adapt(self, rollout, estimate):
    alpha = reshaping.positive_per_negative(
      estimate(rollout), rollout.weights, alpha_min=self.alpha_min
    )
    return rollout.replace(extras=rollout.extras | {"metric/alpha": alpha})
