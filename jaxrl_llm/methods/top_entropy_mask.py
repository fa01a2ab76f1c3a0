"""Top-entropy mask: only the tokens of high entropy are learnt from.

Around another method. With l its policy loss per token, w its weights and H
the entropy of each token's distribution (old: before the step),

    h    = quantile_{1 - rho}(old H over all tokens of the batch)
    e_it = m_it [old H_it >= h]
    loss = sum_it w_it (e_it l_it + KL and other terms)
           - c sum_it e_it H_it / max(sum e, 1)

The denominators of the method count all tokens. The bonus is off at c = 0.
If adaptive, c is applied only where the last step's entropy (the same mean)
was at or below the target, and after each step it is raised by delta if this
step's was, else lowered, within [entropy_min, entropy_max].

Against GRPO it changes:
  transform  marks the tokens; adapts the coefficient of the bonus
  objective  no policy loss on the other tokens; the entropy bonus

Most tokens of a chain of thought follow from the last; the few where the policy
hesitates are where it can go another way. The bonus is a mean over the tokens,
whatever the method's weighting, as in TRL; so c means the same everywhere.
With several updates a step, the mean is scaled from the whole batch.

He et al. 2025, Skywork-OR1, arXiv:2505.22312 (adaptive bonus); Wang et al.
2025, Beyond the 80/20 Rule, arXiv:2506.01939.
"""

from collections.abc import Iterator
import dataclasses

from jaxrl_llm import types
from jaxrl_llm.methods import base, grpo
from jaxrl_llm.objectives import penalties, policy
from jaxrl_llm.transforms import chain, coefficients, entropy_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopEntropyMask(base.MethodConfig):
  """The top fifth of the tokens, as published; no bonus."""

  method: base.MethodConfig = dataclasses.field(default_factory=grpo.Grpo)
  """what is masked: any method without an entropy bonus of its own"""
  rho: float = 0.2
  """share of the tokens learnt from, [0, 1] (TRL top_entropy_quantile); 1: all,
  0: those of the greatest entropy alone"""
  entropy_coef: float = 0.0
  """c, coefficient of the bonus, the first one if adaptive; 0 or more"""
  adaptive: bool = False
  """whether c follows the entropy (TRL use_adaptive_entropy)"""
  entropy_target: float = 0.2
  """nats a token below which an adaptive bonus acts, over the same tokens as
  the loss; positive"""
  entropy_delta: float = 0.005
  """step of an adaptive c (TRL entropy_coef_delta); positive"""
  entropy_min: float = 0.0
  """least adaptive c (TRL entropy_coef_min)"""
  entropy_max: float = 1.0
  """greatest adaptive c (TRL entropy_coef_max)"""

  @property
  def has_bonus(self) -> bool:
    """Whether entropy is a term of the loss."""
    return self.adaptive or self.entropy_coef != 0

  def build(self) -> base.Method:
    """Composes the method."""
    entropy_mask.check_rho(self.rho)
    base.regularizers(entropy_coef=self.entropy_coef)  # raises for a bad value
    inner = self.method.build()
    needs = {"entropy"} if self.has_bonus else set()
    if self.rho < 1:
      needs |= {"entropy", "old_scores"}
    method = dataclasses.replace(
      inner,
      transform=chain.chain(inner.transform, *self._transforms()),
      needs=inner.needs | needs,
    )
    return self._with_bonus(method) if self.has_bonus else method

  def _transforms(self) -> Iterator[types.RolloutTransform]:
    if self.rho < 1:
      yield entropy_mask.top_entropy_mask(rho=self.rho)
    if self.adaptive:
      yield coefficients.adaptive_entropy(
        _mean_entropy,
        init=self.entropy_coef,
        target=self.entropy_target,
        delta=self.entropy_delta,
        low=self.entropy_min,
        high=self.entropy_max,
      )

  def _with_bonus(self, method: base.Method) -> base.Method:
    if getattr(self.method, "entropy_coef", 0):
      raise ValueError(
        f"{type(self.method).__name__} has an entropy bonus already: set its"
        f" entropy_coef to 0, got {self.method.entropy_coef}."
      )

    def select(rollout, advantages):
      rollout = method.selection(rollout, advantages)
      weights = method.weighting(rollout.mask, rollout.weights)
      tokens = rollout.extras.get("top_entropy", rollout.mask)
      factor = entropy_mask.bonus_factor(weights, tokens & rollout.mask)
      return rollout.replace(extras=rollout.extras | {"entropy_factor": factor})

    coef = "entropy_coef" if self.adaptive else self.entropy_coef
    bonus = penalties.Penalty(
      "negative_entropy", coef, penalties.negative_mean_entropy
    )
    return dataclasses.replace(
      method,
      selection=select,
      objective=policy.with_penalties(method.objective, [bonus]),
    )


def _mean_entropy(metrics: types.Metrics):
  """Of the bonus's tokens: undoes policy.token_averages, for it is a mean."""
  return -metrics["negative_entropy"] * metrics["token_weight"]
