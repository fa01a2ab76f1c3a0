"""ADORA: a prompt counts more where it is hard and thinking longer pays.

    P    = longest correct completion of the group
    Q    = mean length of its wrong ones that ended by themselves
    w_g  = amplified if P > Q and the rate of success <= tau, else 1
    A_i  = w_g (r_i - mean_g) / (std_g + eps)
    loss = mean_i mean_t [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
                          + beta * KL_t]

Against GRPO it changes:
  advantage  times a weight of the group

Three forms of w: amplify is the paper's for text; attenuate_vlm its form for
images, 1 where P > Q or nothing is correct and else attenuated;
attenuate_llm that of the released code for text, which has neither tau nor the
second case. The paper's text form is known from its reviews; that both
conditions must hold is our reading.

Nothing is carried from step to step: the weight is made of the rollout alone.
A completion is truncated if it ended by length, where the code compares its
length with a limit.

ADORA: Dynamic Advantage Estimation, arXiv:2602.10019.
"""

import dataclasses
from typing import Literal

from jaxrl_llm import types
from jaxrl_llm.advantages import group, length_advantage
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adora(base.MethodConfig):
  """ADORA for text, as published."""

  weighting: Literal["amplify", "attenuate_vlm", "attenuate_llm"] = "amplify"
  """amplify where longer pays on a hard prompt (paper, text), or attenuate
  where longer does not pay (paper, images; released code, text)"""
  amplified: float = 2.0
  """w of a group that is amplified, 0 or more"""
  attenuated: float = 0.1
  """lambda of a group that is attenuated, 0 or more"""
  tau: float = 0.5
  """share of correct completions up to which a prompt is hard; [0, 1]"""
  threshold: float = 0.5
  """a completion is correct above this reward (code: 1.01 of at most 3)"""
  baseline: Literal["group_std", "group_mean", "loo"] = "group_std"
  """the advantage that is weighed: GRPO's, undivided, or leave-one-out"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  beta: float = 0.001
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "k3"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as the code) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward (code for images: 1e-9)"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    penalties, needs = base.regularizers(beta=self.beta, kl=self.kl)
    return base.Method(
      advantage=self._advantage,
      weighting=weighting.sequence_mean,
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

  def _check(self):
    surrogates.check_clip(self.clip_low, self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    length_advantage.check_weighting(self.weighting)
    for name in ("amplified", "attenuated"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name} must be 0 or more and finite, got {getattr(self, name)}."
        )
    if not 0 <= self.tau <= 1:
      raise ValueError(f"tau must be in [0, 1], got {self.tau}.")
    if not abs(self.threshold) < float("inf"):
      raise ValueError(f"threshold must be finite, got {self.threshold}.")
    if self.baseline not in self._baselines():
      raise ValueError(
        f"baseline must be one of {', '.join(self._baselines())}; got"
        f" {self.baseline!r}."
      )

  def _baselines(self):
    knobs = {"ddof": self.ddof, "eps": self.eps}
    return {
      "group_std": base.from_rewards(group.group_normalized, **knobs),
      "group_mean": base.from_rewards(group.group_centred),
      "loo": base.from_rewards(group.leave_one_out),
    }

  def _advantage(self, rollout):
    factor = length_advantage.group_weights(
      rollout.rewards > self.threshold,
      rollout.mask.sum(axis=1),
      rollout.finish_reason == types.FINISH_LENGTH,
      rollout.weights,
      group_size=rollout.group_size,
      weighting=self.weighting,
      attenuated=self.attenuated,
      amplified=self.amplified,
      tau=self.tau,
    )
    return factor * self._baselines()[self.baseline](rollout)
