"""HDPO: right answers first, then fewer tools among the right answers alone.

    r    = answer_weight right + format_weight well_formed
    A_i  = (r_i - mean_g) / (std_g + eps)
    t_i  = right_i / (n_tools_i + 1)
    A'_i = (t_i - mean_Q) / (std_Q + eps),  Q = {i in g: t_i > 0},  else 0
    f(A) = min(-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),
               -dual_clip A if A < 0)
    L    = sum_it f(A_i) / M,  L' = sum_{it: A'_i != 0} f(A'_i) / M'
    loss = w_acc L + w_tool L'

with M the tokens of the batch, M' those of the rows with a signal about tools.
A sum of the two rewards would let a wrong answer without tools pass for half a
success, and divide both by one std; here tools are compared where the answer
is right, and nothing of it reaches the accuracy.

Against GRPO it changes:
  plan       counts the tool calls of a completion by their marker
  transform  credit for economy, of right answers among themselves
  advantage  of accuracy and form, blind to tools
  prepare    the share of economy's rows, on the whole batch
  weighting  every token of the batch counts the same, by default
  objective  the sum of two dual-clip losses, each a mean of its own; no KL

right: the run's first reward is above 1/2; well_formed: its second one is, if
it has one. A rollout without components has one reward, which says `right`.
A right answer without any tool counts among Q, as in the authors' code, though
a comment there says otherwise: it is what the paper rewards.

Act Wisely: Cultivating Meta-Cognitive Tool Use, arXiv:2604.08545.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import economy, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import policy, surrogates, weighting
from jaxrl_llm.rollout import markers
from jaxrl_llm.transforms import chain

_AGGREGATIONS = {
  "token_mean": weighting.token_mean,
  "sequence_mean": weighting.sequence_mean,
  "sequence_sum": weighting.sequence_sum,
  "fixed_length": weighting.fixed_length,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hdpo(base.MethodConfig):
  """HDPO, with the constants of its authors' runs (Metis)."""

  marker: str = "<tool_call>"
  """regular expression that finds a tool call in the text of a completion"""
  w_acc: float = 1.0
  """factor of the accuracy's loss; 0 or more"""
  w_tool: float = 0.15
  """factor of the economy's loss; 0 or more, 0: GRPO on r (0.10 to 0.20
  tried)"""
  answer_weight: float = 0.9
  """share of a right answer in r"""
  format_weight: float = 0.1
  """share of a well-formed one in r"""
  scale: bool = True
  """divides both credits by their std"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.2
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  aggregation: Literal[
    "token_mean", "sequence_mean", "sequence_sum", "fixed_length"
  ] = "token_mean"
  """how tokens are weighed, in either channel among the rows that it has (verl
  loss_agg_mode)"""
  beta: float = 0.0
  """coefficient of the KL to the reference model; 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator of the KL term, see objectives.kl (verl kl_loss_type)"""
  entropy_coef: float = 0.0
  """coefficient of an entropy bonus; 0: none (verl entropy_coeff)"""
  eps: float = 1e-6
  """added to the stds, which are over G - 1 and |Q| - 1"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    penalties, needs = base.regularizers(
      beta=self.beta, kl=self.kl, entropy_coef=self.entropy_coef
    )
    return base.Method(
      plan=markers.count_marker("n_tools", self.marker),
      transform=chain.stateless(self._economy),
      advantage=self._accuracy,
      prepare=self._prepare,
      weighting=_AGGREGATIONS[self.aggregation],
      objective=policy.policy_objective(
        surrogate=self._surrogate, penalties=penalties
      ),
      needs=needs,
      min_group_size=1,
    )

  def _economy(self, rollout):
    right, _ = _right_and_formed(rollout)
    rewards = economy.tool_rewards(right, rollout.extras["n_tools"])
    credit = economy.economy_credit(
      rewards,
      rollout.weights,
      group_size=rollout.group_size,
      eps=self.eps,
      scale=self.scale,
    )
    return rollout.replace(extras=rollout.extras | {"tool_credit": credit})

  def _accuracy(self, rollout):
    right, formed = _right_and_formed(rollout)
    return economy.accuracy_credit(
      self.answer_weight * right + self.format_weight * formed,
      rollout.weights,
      group_size=rollout.group_size,
      eps=self.eps,
      scale=self.scale,
    )

  def _prepare(self, rollout, advantages, scores):
    """Writes how much more a token weighs in the economy's loss, [N, T]."""
    del advantages, scores
    weigh = _AGGREGATIONS[self.aggregation]
    rows = rollout.extras["tool_credit"] != 0
    own = weigh(rollout.mask, jnp.where(rows, rollout.weights, 0.0))
    all_rows = weigh(rollout.mask, rollout.weights)
    share = own / jnp.where(all_rows > 0, all_rows, 1.0)
    return rollout.replace(extras=rollout.extras | {"tool_share": share})

  def _surrogate(self, tokens):
    knobs = {
      "clip_low": self.clip_low,
      "clip_high": self.clip_high,
      "dual_clip": self.dual_clip,
    }
    accuracy, clipped = surrogates.dual_clip_surrogate(
      tokens.log_ratio, tokens.advantages, **knobs
    )
    extras = tokens.rollout.extras
    credit = jnp.where(tokens.mask, extras["tool_credit"][:, None], 0.0)
    spared, _ = surrogates.dual_clip_surrogate(
      tokens.log_ratio, credit, **knobs
    )
    spared *= extras["tool_share"]
    found = {"accuracy_loss": accuracy, "tool_loss": spared}
    return self.w_acc * accuracy + self.w_tool * spared, clipped | found

  def _check(self):
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=1, eps=self.eps)
    for name in ("w_acc", "w_tool", "answer_weight", "format_weight"):
      value = getattr(self, name)
      if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
    if self.aggregation not in _AGGREGATIONS:
      raise ValueError(
        f"aggregation must be one of {', '.join(_AGGREGATIONS)}; got"
        f" {self.aggregation!r}."
      )


def _right_and_formed(rollout):
  """Both [N] bool; a component that does not apply (NaN) is neither."""
  parts = rollout.extras.get("reward_components", rollout.rewards[:, None])
  found = parts > 0.5
  formed = found[:, 1] if found.shape[1] > 1 else jnp.zeros_like(found[:, 0])
  return found[:, 0], formed
