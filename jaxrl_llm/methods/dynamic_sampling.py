"""Dynamic sampling: groups without signal are replaced, the batch stays whole.

Around any method. A group is kept where its G values m_g differ (and, if
bounds are given, where their mean is inside):

    keep g  if  std_ddof0(m_g) > min_std  and  low < mean(m_g) < high
    loss = that of the method, over B groups that were kept

Rounds of B new prompts are sampled until B groups are kept, at most max_rounds.
The batch is always B groups; those that were not found are rows of weight 0, in
no denominator. Kept groups beyond B wait for the next step, with the sampler's
log-probabilities as their pi_old: an older policy sampled them, and the ratio
corrects for that.

Against GRPO it changes:
  plan       rounds of samples until B groups have a signal

Logged: plan/rounds, kept, stale, padded, surplus, dropped, in groups. Rewards
and lengths in the metrics are of everything sampled, so they stay comparable.

Yu et al. 2025, DAPO, arXiv:2503.14476.
"""

import dataclasses
from typing import Literal

from jaxrl_llm.methods import base, grpo
from jaxrl_llm.rollout import dynamic_sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicSampling(base.MethodConfig):
  """Any difference is a signal; surplus groups may wait for one step."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is trained on the groups: any method, with its own plan inside"""
  max_rounds: int = 10
  """most rounds of B prompts in a step (verl max_num_gen_batches, which fails
  the run where we train on what there is)"""
  metric: Literal["reward", "accuracy"] = "reward"
  """m: the reward, or 1 where the first reward is at least 1 (verl
  filter_groups.metric seq_reward, acc); reward by default: every group that
  has an advantage is kept"""
  low: float | None = None
  """exclusive bound of the group's mean (OpenRLHF
  dynamic_filtering_reward_range); None: none"""
  high: float | None = None
  """as low, from above"""
  min_std: float = 0.0
  """least std in a group, itself excluded (verl 0, slime 1e-6)"""
  max_age: int = 1
  """steps that surplus groups may wait; 0 throws them away (verl), and is right
  for methods without a ratio"""

  def build(self) -> base.Method:
    """Composes the method."""
    inner = self.method.build()
    plan = dynamic_sampling.dynamic_sampling(
      inner.plan,
      max_rounds=self.max_rounds,
      metric=self.metric,
      low=self.low,
      high=self.high,
      min_std=self.min_std,
      max_age=self.max_age,
    )
    return dataclasses.replace(inner, plan=plan)
