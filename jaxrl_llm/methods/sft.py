"""SFT: the answers of the data are imitated, token by token.

    loss = -sum_it logprobs_it / M

with M the number of tokens of the batch's answers, their stop tokens included.
Nothing is sampled and no reward is read: `jaxrl sft` trains with it. It is the
usual start of a run of reinforcement learning.

Against GRPO it changes:
  plan       completions are the data's own answers
  advantage  none
  weighting  every token of the batch counts the same
  objective  cross-entropy

Ouyang et al. 2022, InstructGPT, arXiv:2203.02155.
"""

import dataclasses

from jaxrl_llm.methods import base
from jaxrl_llm.objectives import imitation, weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sft(base.MethodConfig):
  """Supervised fine-tuning; no hyper-parameters."""

  def build(self) -> base.Method:
    """Composes the method."""
    return base.Method(
      advantage=base.no_credit,
      weighting=weighting.token_mean,
      objective=imitation.cross_entropy,
      min_group_size=1,
      supervised=True,
    )
