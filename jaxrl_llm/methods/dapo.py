"""DAPO: GRPO with a higher upper clip, a mean over tokens and no KL.

    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

with A as in GRPO and M the number of tokens in the groups that are kept.

Against GRPO it changes:
  transform  drops groups of equal reward, then takes reward, linearly, from a
             completion that runs into its last `buffer` tokens (off by
             default: buffer is 0)
  weighting  every token of the batch counts the same
  objective  clip_high > clip_low, no KL
  plan       dynamic sampling (off by default)

Groups of equal reward have no gradient. filter_groups gives those of the batch
weight 0, so that they leave M and the batch gets smaller; dynamic_sampling
samples other prompts in their place until the batch is whole again. The paper
has the second; it is off by default, as in TRL and verl, because a step then
takes up to max_rounds as many completions. More of its knobs:
DynamicSampling(method=Dapo()).

Yu et al. 2025, DAPO, arXiv:2503.14476.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import dynamic_sampling, plans
from jaxrl_llm.transforms import chain, filters, shaping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dapo(base.MethodConfig):
  """DAPO; its overlong penalty depends on the task and is off at buffer 0."""

  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  filter_groups: bool = True
  """gives groups of equal reward weight 0; False keeps their tokens in M (as
  TRL's loss_type "dapo")"""
  dynamic_sampling: bool = False
  """samples other prompts in the place of such groups (verl
  filter_groups.enable)"""
  max_rounds: int = 10
  """most rounds of samples in a step with dynamic_sampling (verl
  filter_groups.max_num_gen_batches)"""
  buffer: int = 0
  """tokens before the limit in which reward is lost (paper: 4096 of 20480);
  0: no overlong penalty"""
  max_length: int | None = None
  """the limit, in tokens; None takes the run's completion_length"""
  overlong_factor: float = 1.0
  """reward lost at the limit"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    plan = dynamic_sampling.dynamic_sampling(max_rounds=self.max_rounds)
    return base.Method(
      plan=plan if self.dynamic_sampling else plans.one_round(),
      transform=chain.chain(*self._transforms()),
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
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

  def _transforms(self):
    if self.filter_groups:
      yield filters.drop_uniform_groups()
    if self.buffer:
      yield shaping.overlong_penalty(
        buffer=self.buffer,
        max_length=self.max_length,
        factor=self.overlong_factor,
      )
