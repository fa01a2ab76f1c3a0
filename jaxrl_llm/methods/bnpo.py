"""BNPO: a Beta density of the groups' success rates takes the place of the std.

    x    = r, mapped from [min_value, max_value] to [0, 1],  p_g = mean_g x
    a, b = moments of p_g over the batch, as of Beta(a, b)
    f    = density of Beta(max(1, 1 + a / 3), max(1, 1 + b / 3))
    A_i  = min(1 / f(p_g), max_weight) (x_i - p_g)
    l    = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    loss = mean_i sum_t [min(l, -dual_clip A) if A < 0 else l]

The density is fitted to each batch anew and makes the variance of the gradient
least. It is 1, which leaves reward minus mean, for one prompt or rates far
apart; at alpha = beta = 3/2 the advantage is GRPO's times pi / 8.

Against GRPO it changes:
  transform  logs the share of rewards outside their range
  advantage  over the density of the group's rate, not over its std
  weighting  the mean over completions of the sum over their tokens
  objective  a second bound, for negative advantages; clip_high > clip_low; no
             KL

With `decompose` that is done for each component of the reward by itself, and
the advantage is their mean; the run's weights of the rewards are not looked at.
Our readings: a batch whose groups all have one rate (official code: NaN) has
density 1, rates outside [0, 1] are clipped, a component that does not apply to
a row (NaN) is not counted in its rate.

Traps: TRL's loss_type "bnpo" is a mean over the tokens of a local batch and
none of this.

Xiao et al. 2025, BNPO, arXiv:2506.02864.
"""

import dataclasses

import jax.numpy as jnp

from jaxrl_llm.advantages import beta, components
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.transforms import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bnpo(base.MethodConfig):
  """BNPO, as its official recipe."""

  min_value: float = 0.0
  """lowest reward that the task can give"""
  max_value: float = 1.0
  """highest reward that the task can give"""
  decompose: bool = False
  """one advantage for each component of the reward, their mean is taken"""
  ranges: str = ""
  """with decompose: low_high of each component, by commas ("0_1,-1_1"); empty:
  min_value and max_value for all"""
  max_weight: float = 1e6
  """bound of 1 / f, which is infinite at rates 0 and 1"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 10.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    if not 0 < self.max_weight < float("inf"):
      raise ValueError(
        f"max_weight must be positive and finite, got {self.max_weight}."
      )
    ranges = self._ranges()
    return base.Method(
      transform=chain.stateless(lambda rollout: self._watch(rollout, ranges)),
      advantage=lambda rollout: self._credit(rollout, ranges),
      weighting=weighting.sequence_sum,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        ),
      ),
    )

  def _ranges(self) -> tuple[tuple[float, float], ...]:
    if not self.ranges:
      beta.check_range(self.min_value, self.max_value)
      return ((self.min_value, self.max_value),)
    if not self.decompose:
      raise ValueError(
        f"ranges are those of components, for decompose; got {self.ranges!r}."
      )
    return tuple(map(_range, self.ranges.split(",")))

  def _rewards(self, rollout):
    """[N, K]: the components, or the reward as the only one."""
    if self.decompose:
      return components.of_rollout(rollout)[0]
    return rollout.rewards[:, None]

  def _credit(self, rollout, ranges):
    return beta.beta_normalized_components(
      self._rewards(rollout),
      rollout.weights,
      group_size=rollout.group_size,
      ranges=ranges,
      max_weight=self.max_weight,
    )

  def _watch(self, rollout, ranges):
    rewards = self._rewards(rollout)
    low, high = jnp.asarray(ranges, rewards.dtype).T[:, None, :]
    outside = (rewards < low) | (rewards > high)
    counted = rollout.weights > 0
    share = (outside.any(axis=1) & counted).sum() / jnp.maximum(
      counted.sum(), 1
    )
    return rollout.replace(
      extras=rollout.extras | {"metric/rewards_out_of_range": share}
    )


def _range(text: str) -> tuple[float, float]:
  try:
    low, high = map(float, text.split("_"))
  except ValueError:
    raise ValueError(
      f"ranges must be low_high of each component, by commas; got {text!r}."
    ) from None
  beta.check_range(low, high)
  return low, high
