"""COPO: where answers agree, a prompt is compared with the other prompts.

    H_g  = entropy of the group's final answers, bits
    R_g  = mean_g, or with consistency mean_g (1 - H_g (1 - 1/G) / log2 G)
    A_i  = (r_i - mean_g) / (std_g + eps)
    B_i  = (R_g - mean_B) / (std_B + eps), over the R of the batch's prompts
    w_i  = sigmoid(k (H_g - b)), 0 where r_i = 0
    f(x) = -min(r x, clip(r, 1 - clip_low, 1 + clip_high) x), at most
           -dual_clip x where x < 0
    loss = mean_i mean_t [w_i f(A_i) + (1 - w_i) f(B_i)]

A group of equal rewards has no A; all wrong, it learns from B as long as
another prompt does better.

Against GRPO it changes:
  plan       reads the final answer of each completion
  selection  the second advantage, over all prompts of the rollout, and w
  objective  a blend of two clipped losses with dual clip; no KL

The released script leaves R_g = mean_g, the paper's text scales it by the
entropy: consistency. The paper names k and b gamma and rho. Which strings are
one answer is our reading: see answer. A completion without an answer has the
empty one.

COPO: Consistency-Aware Policy Optimization, arXiv:2508.04138.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.advantages import consistency, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rewards import final_answer
from jaxrl_llm.rollout import plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copo(base.MethodConfig):
  """COPO, as its released script runs it."""

  k: float = 5.0
  """steepness of w, per bit (paper: gamma)"""
  b: float = 1.0
  """entropy at which both losses count the same, bits (paper: rho)"""
  blend: Literal[
    "soft_with_zero",
    "only_soft",
    "only_zero",
    "only_forced",
    "soft_with_forced",
    "only_global",
    "no_global",
  ] = "soft_with_zero"
  """what w is made of: soft, the sigmoid; zero, 0 where the reward is 0;
  forced, 0 where A is 0; only_global 0, no_global 1 (GRPO, dual clip)"""
  consistency: bool = False
  """scales R_g down by the entropy (paper True, released script False:
  use_consistency_coef)"""
  answer: Literal["math", "exact_integer", "text"] = "math"
  """what the final answer is: after ####, in \\boxed{}, or the last number; the
  last integer of the first line; or the whole completion"""
  normalize: bool = True
  """divides both advantages by a std (verl norm_adv_by_std_in_grpo)"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  eps: float = 1e-6
  """added to both stds"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    return base.Method(
      plan=plans.annotated(
        self._read, {"answer_ids": types.Extra(dtype=np.int32)}
      ),
      advantage=self._local,
      selection=self._select,
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(surrogate=self._surrogate),
      min_group_size=1,
    )

  def _check(self):
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=1, eps=self.eps)
    consistency.check_blend(self.blend)
    if self.answer not in final_answer.READERS:
      raise ValueError(
        f"answer must be one of {', '.join(final_answer.READERS)}; got"
        f" {self.answer!r}."
      )
    if not 0 <= self.k < float("inf"):
      raise ValueError(f"k must be 0 or more and finite, got {self.k}.")
    if not abs(self.b) < float("inf"):
      raise ValueError(f"b must be finite, got {self.b}.")

  def _read(self, groups, state, tokenizer):
    """Numbers the answers of each group, from 0."""
    del tokenizer
    reader = final_answer.READERS[self.answer]
    texts = np.array([reader(text) for text in groups.samples.texts], object)
    ids = [
      np.unique(own.astype(str), return_inverse=True)[1]
      for own in texts.reshape(-1, groups.group_size)
    ]
    return {"answer_ids": np.concatenate(ids).astype(np.int32)}, state, {}

  def _local(self, rollout):
    return consistency.within_prompt(
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      normalize=self.normalize,
      eps=self.eps,
    )

  def _select(self, rollout, advantages):
    """Writes extras["copo_global"] and ["copo_share"], [N], and metrics."""
    del advantages
    size, rewards = rollout.group_size, rollout.rewards
    entropy = consistency.answer_entropy(
      rollout.extras["answer_ids"], rollout.weights, group_size=size
    )
    earned = consistency.prompt_rewards(
      rewards,
      entropy,
      rollout.weights,
      group_size=size,
      consistency=self.consistency,
    )
    between = consistency.between_prompts(
      earned,
      rollout.weights,
      group_size=size,
      normalize=self.normalize,
      eps=self.eps,
    )
    share = consistency.local_share(
      entropy,
      rewards,
      self._local(rollout),
      blend=self.blend,
      steepness=self.k,
      middle=self.b,
    )
    found = {
      "copo_global": between,
      "copo_share": share,
      "metric/answer_entropy": entropy.mean(),
    }
    return rollout.replace(extras=rollout.extras | found)

  def _surrogate(self, tokens):
    extras = tokens.rollout.extras
    share = extras["copo_share"][:, None]
    return surrogates.blended(
      share,
      *(
        surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          credit,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        )
        for credit in (
          tokens.advantages,
          base.per_token(extras["copo_global"], tokens.mask),
        )
      ),
    )
