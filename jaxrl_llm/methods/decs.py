"""DECS: only what a right completion adds after its answer loses reward.

    R_it = r_i (1 + beta_len), also where row i is padded
    R_it = r_i + beta_len (1 - L_i / L_max) on its redundant tokens
    A_it = (R_it - mean_g R_.t) / (std_g R_.t + eps), position by position
    loss = sum_it [-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)] / M

the loss of a token with A < 0 being at most -dual_clip A. Reasoning is cut
before Wait, But, Alternatively, Hmm, Let, Therefore; redundant are the chunks
behind the first that presents the right answer, up to </think>. So a length
penalty reaches neither the tokens that find the answer nor those that give it.

Against GRPO it changes:
  plan       labels chunks; fills the batch with prompts that some completions
             solve and, as a share kappa, prompts that all do
  advantage  of tokens, against the siblings at the same position
  weighting  every token of the batch counts the same
  objective  dual clip, no KL

kappa follows the share of the reasoning that is needed, from step to step:
kappa + kappa_lr (share - share before), so that easy prompts, in which there is
only length to learn, do not take over. It begins at 0: a first step has none.

The judge of a chunk is a small model in the paper. Here it is a rule, whether
the reference answer stands in the chunk (which a number met by chance passes),
the run's own reward of the chunk, or a function of yours. A stop token is never
redundant. kappa is clipped, as the paper says; the code does not clip.

A prompt that no completion solves is left out: where B are not found in
max_rounds the batch is filled with rows of weight 0.

Logged: plan/rounds, kappa, easy, padded, in prompts; plan/needed, the share of
chunks up to the answer; plan/redundant, the share of tokens that are.

DECS: Overthinking Reduction with Decoupled Rewards, arXiv:2509.25827.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.advantages import group, positions
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import curriculum, reasoning_chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decs(base.MethodConfig):
  """DECS, with the rewards of its code."""

  beta_len: float = 0.1
  """reward that redundant tokens can lose; 0 or more"""
  max_length: int | None = None
  """L_max, in tokens; None takes the run's completion_length"""
  redundant_base: Literal["code", "paper"] = "code"
  """reward of redundant tokens: r + beta_len (1 - L / L_max), or beta_len less,
  as the paper writes it"""
  eps: float = 1e-6
  """added to the std, in units of reward"""
  words: str = "Wait,But,Alternatively,Hmm,Let,Therefore"
  """before which reasoning is cut, by commas"""
  merge: bool = True
  """joins a chunk without a line break inside to the next"""
  judge: str = "answer"
  """whether a chunk has the answer: "answer", by its text; "reward", by the
  run's reward of it; "file.py:function" (prompts, segments, answers)"""
  curriculum: bool = True
  """fills the batch by kappa; False: the prompts of one round, whatever they
  are"""
  kappa_lr: float = 0.2
  """how fast kappa moves; 0: no easy prompts"""
  kappa_min: float = 0.0
  """least kappa; -inf: not clipped, as in the code"""
  kappa_max: float = 0.95
  """largest share of easy prompts, below 1"""
  max_rounds: int = 10
  """rounds of B prompts in a step (max_num_gen_batches)"""
  seed: int = 0
  """of which easy prompts are let in"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """bounds the loss of tokens with negative credit; above 1 + clip_high (verl
  clip_ratio_c)"""

  def build(self) -> base.Method:
    """Composes the method."""
    positions.check_decoupled(
      self.beta_len, self.max_length, self.redundant_base
    )
    group.check_std(ddof=1, eps=self.eps)
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    reasoning_chunks.check_judge(self.judge)
    curriculum.check(self.kappa_lr, self.kappa_min, self.kappa_max)
    curriculum.check_rounds(self.max_rounds, self.seed)
    return base.Method(
      plan=self._plan(),
      advantage=self._advantage,
      weighting=weighting.token_mean,
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

  def _plan(self):
    words = [w.strip(" ") for w in self.words.split(",") if w.strip(" ")]
    if not words:
      raise ValueError(f"words must name at least one, got {self.words!r}.")

    def label(found, sampler):
      labels = reasoning_chunks.label(
        found, sampler, words=words, name=self.judge, merge=self.merge
      )
      tokens = max(int(found.samples.generation.mask.sum()), 1)
      share = int(np.diff(labels.redundant).sum()) / tokens
      arrays = reasoning_chunks.as_extras(labels)
      return arrays, labels.ratios, {"plan/redundant": share}

    if not self.curriculum:
      return curriculum.without(
        label,
        reasoning_chunks.EXTRAS,
        check=lambda: reasoning_chunks.look_for(self.judge),
      )
    return curriculum.plan(
      label,
      reasoning_chunks.EXTRAS,
      rate=self.kappa_lr,
      low=self.kappa_min,
      high=self.kappa_max,
      max_rounds=self.max_rounds,
      seed=self.seed,
      check=lambda: reasoning_chunks.look_for(self.judge),
    )

  def _advantage(self, rollout: types.Rollout):
    rewards = positions.decoupled_rewards(
      rollout.rewards,
      rollout.extras["redundant_start"],
      rollout.extras["redundant_end"],
      rollout.mask,
      beta_len=self.beta_len,
      max_length=self.max_length,
      redundant_base=self.redundant_base,
    )
    return positions.position_normalized(
      rewards,
      rollout.mask,
      rollout.weights,
      group_size=rollout.group_size,
      eps=self.eps,
    )
