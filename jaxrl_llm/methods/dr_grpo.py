"""Dr. GRPO: GRPO without its two biases, the std and the length of a sequence.

    A_i  = r_i - mean_g
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / (N L)

The push on a token depends neither on how hard its prompt is nor on how long
its completion became.

Against GRPO it changes:
  advantage  centred in the group, not divided by the std
  weighting  every token counts 1 / (N L), L a constant
  objective  no KL by default

Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783.
"""

import dataclasses
import functools

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrGrpo(base.MethodConfig):
  """Dr. GRPO, as published."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  max_length: int | None = None
  """L, tokens; None takes the run's completion_length"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    if self.max_length is not None and self.max_length < 1:
      raise ValueError(
        f"max_length must be at least 1 token, or None for the run's"
        f" completion_length; got {self.max_length}."
      )
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      advantage=base.from_rewards(group.group_centred),
      weighting=functools.partial(
        weighting.fixed_length, length=self.max_length
      ),
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.clipped_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
        ),
        penalties=penalties,
      ),
      needs=needs,
    )
