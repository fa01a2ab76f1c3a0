"""M2PO: drops the few tokens that carry the variance of stale samples.

Around any method. With d = o - u, o the trainer's log-probability before the
update and u the sampler's, the tokens of largest d^2 are dropped, as few of
them as bring the mean of d^2 over the batch under a threshold:

    keep = the k tokens of smallest d^2, k largest with mean_kept d^2 < tau
    loss = sum_it v_it keep_it l_it

with v and l the weights and the policy loss of the method. Clipping drops
tokens by their own ratio, however close the batch as a whole is.

Against GRPO it changes:
  transform  after the method's own: drops tokens

Zheng et al. 2025, Prosperity before Collapse, arXiv:2510.01161.
"""

import dataclasses
import functools
from typing import Literal

from jaxrl_llm.methods import base, grpo
from jaxrl_llm.transforms import chain, off_policy, off_policy_masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class M2po(base.MethodConfig):
  """M2PO around any method."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is masked: any method"""
  tau: float = 0.04
  """largest mean of d^2 over the tokens that stay, nats^2 (AReaL
  m2_threshold)"""
  denominator: Literal["recounted", "original"] = "recounted"
  """whether dropped tokens leave the denominators or stay in them; recounted
  by default: a step keeps its size"""

  def build(self) -> base.Method:
    """Composes the method."""
    if not 0 < self.tau < float("inf"):
      raise ValueError(f"tau must be positive and finite, got {self.tau}.")
    inner = self.method.build()
    masked = off_policy.rejected(
      functools.partial(
        off_policy_masks.second_moment_mask, threshold=self.tau
      ),
      denominator=self.denominator,
    )
    return dataclasses.replace(
      inner,
      transform=chain.chain(inner.transform, masked),
      needs=inner.needs | {"old_scores"},
    )
