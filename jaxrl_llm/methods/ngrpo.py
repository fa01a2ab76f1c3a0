"""NGRPO: one imagined full score a group, so that all-wrong groups teach too.

    e_g  = (r_1, ..., r_G) and scores of r_max, n_virtual of them
    A_i  = (r_i - mean e_g) / (std e_g + eps)
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                   - entropy_coef * H_t] / M

M the number of tokens. Where every answer of a group is wrong GRPO's credit is
0; here each gets -1 / sqrt(G + 1), away from what was tried. Only negative
advantages meet the lower bound of the clip and only positive ones the upper:
clip_low < clip_high holds failures tighter than successes.

Against GRPO it changes:
  transform  drops groups that are right throughout
  advantage  mean and std with the imagined completions; no sum of zero
  weighting  every token of the batch counts the same
  objective  the asymmetric clip, no KL, a small entropy bonus

A completion without siblings has advantage r / (1 + eps), as in the official
code. The entropy bonus is the default of the code that the paper's runs had
on.

Traps: rewards above r_max, or a task whose rewards never reach it, move the
mean of every group; set r_max to the highest reward that the task can give.

NGRPO: Negative-enhanced Group Relative Policy Optimization, arXiv:2509.18851.
"""

import dataclasses

from jaxrl_llm.advantages import baselines, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.transforms import chain, filters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ngrpo(base.MethodConfig):
  """NGRPO, as its official script."""

  r_max: float = 1.0
  """highest reward that the task can give"""
  n_virtual: int = 1
  """imagined completions of that reward in each group; 0: none, GRPO's
  advantage"""
  filter_groups: bool = True
  """gives groups whose rewards all reach r_max weight 0: their tokens leave
  M"""
  clip_low: float = 0.16
  """how far the ratio may fall below 1, where the advantage is negative;
  (0, 1]"""
  clip_high: float = 0.24
  """how far the ratio may rise above 1, where the advantage is positive"""
  entropy_coef: float = 0.001
  """coefficient of the entropy bonus; 0: none (verl entropy_coeff)"""
  eps: float = 1e-6
  """added to the std, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=1, eps=self.eps)
    baselines.check_virtual(r_max=self.r_max, n_virtual=self.n_virtual)
    penalties, needs = base.regularizers(entropy_coef=self.entropy_coef)
    drop = filters.drop_solved_groups(self.r_max)
    return base.Method(
      transform=drop if self.filter_groups else chain.identity(),
      advantage=base.from_rewards(
        baselines.virtual_normalized,
        r_max=self.r_max,
        n_virtual=self.n_virtual,
        eps=self.eps,
      ),
      weighting=weighting.token_mean,
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
      min_group_size=1,
    )
