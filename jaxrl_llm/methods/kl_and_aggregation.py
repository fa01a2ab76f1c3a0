"""KL and aggregation: any method, with a KL term and a mean of one's choice.

Around another method. With l its policy loss per token, k an estimator of
KL(pi || ref) and w the weights of the aggregation,

    loss = sum_it w_it (l_it + beta k_it)              placement "loss"
    r_i  = r_i - beta sum_t m_it k_it                  placement "reward"
    beta = beta (1 + clip(KL / target - 1, -0.2, 0.2) rows / horizon)
           after each step, coefficient "adaptive"

    token_mean     w_it = m_it / M,  M the tokens of the whole batch
    sequence_mean  w_it = m_it / (n_i N)
    sequence_sum   w_it = m_it / N
    fixed_length   w_it = m_it / (L N)
    token_sum      w_it = m_it

Against GRPO it changes:
  transform  placement "reward": takes the KL out of the reward, after the
             method's own; coefficient "adaptive": follows the KL
  weighting  by name
  objective  placement "loss": adds the KL, which no factor of the policy loss
             (rollout weights, kept tokens) touches

Traps: k1 as a loss has zero expected gradient; k3 and low_var_kl as a loss have
that of the other direction, KL(ref || pi); k3 as a reward has neither.

Ziegler et al. 2019, arXiv:1909.08593; Tang and Munos 2025, On a few pitfalls in
KL divergence gradient estimation for RL, arXiv:2506.09477.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Literal

from jaxrl_llm import types
from jaxrl_llm.methods import base, grpo, top_entropy_mask
from jaxrl_llm.objectives import penalties, policy, weighting
from jaxrl_llm.transforms import chain, coefficients, kl_in_reward

_AGGREGATIONS = {
  "token_mean": weighting.token_mean,
  "sequence_mean": weighting.sequence_mean,
  "sequence_sum": weighting.sequence_sum,
  "fixed_length": weighting.fixed_length,
  "token_sum": weighting.token_sum,
}
_OVER_ROWS = ("sequence_mean", "sequence_sum", "fixed_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlAndAggregation(base.MethodConfig):
  """The exact KL in the loss at verl's coefficient, a mean over tokens."""

  method: base.MethodConfig = dataclasses.field(
    default_factory=lambda: grpo.Grpo(beta=0.0)
  )
  """what is regularised: any method whose own beta is 0"""
  beta: float = 0.001
  """coefficient of the KL, the first one if adaptive (TRL beta, verl
  kl_loss_coef and kl_ctrl.kl_coef); 0: no reference is run"""
  kl: base.KlName = "exact"
  """estimator: exact has the value and the gradient of KL(pi || ref), in the
  loss as in the reward (where it is k1); the rest: objectives.kl (verl
  kl_loss_type and kl_penalty)"""
  placement: Literal["loss", "reward"] = "loss"
  """loss by default: there an exact gradient needs no credit assignment (verl
  use_kl_loss, use_kl_in_reward)"""
  coefficient: Literal["fixed", "adaptive"] = "fixed"
  """whether beta follows the KL measured (verl kl_ctrl.type)"""
  target: float = 0.1
  """KL that an adaptive beta aims at, nats a token (verl target_kl)"""
  horizon: float = 10_000
  """completions in which an adaptive beta changes by a fifth at most"""
  aggregation: Literal[
    "token_mean",
    "sequence_mean",
    "sequence_sum",
    "fixed_length",
    "token_sum",
    "method",
  ] = "token_mean"
  """how tokens are weighed, or "method": as the method does (verl
  loss_agg_mode: token-mean, seq-mean-token-mean, seq-mean-token-sum,
  seq-mean-token-sum-norm, token-sum; TRL loss_type: dapo or bnpo, grpo, luspo,
  dr_grpo)"""
  length: int | None = None
  """L of fixed_length, tokens (TRL max_completion_length, verl
  loss_scale_factor); None takes the run's completion_length"""
  count_empty_rows: bool = True
  """whether N counts rows without tokens (True, as TRL: a step keeps its size)
  or not (False, verl)"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    inner = self.method.build()
    weigh = inner.weighting
    if self.aggregation != "method":
      weigh = self._aggregation()
    method = dataclasses.replace(inner, weighting=weigh)
    if not self.beta:
      return method
    if "ref_logprobs" in inner.needs:
      raise ValueError(
        f"{type(self.method).__name__} has a KL to the reference already: set"
        f" its beta to 0, or beta here, which is {self.beta}."
      )
    objective = inner.objective
    if self.placement == "loss":
      objective = policy.with_penalties(objective, [self._penalty()])
    return dataclasses.replace(
      method,
      transform=chain.chain(inner.transform, *self._transforms()),
      objective=objective,
      needs=inner.needs | {"ref_logprobs"},
    )

  def _check(self):
    base.regularizers(beta=self.beta, kl=self.kl)  # raises for a bad value
    _check_choice("placement", self.placement, ("loss", "reward"))
    _check_choice("coefficient", self.coefficient, ("fixed", "adaptive"))
    _check_choice("aggregation", self.aggregation, (*_AGGREGATIONS, "method"))
    if self.coefficient == "adaptive" and not self.beta:
      raise ValueError(
        f"beta must be positive for an adaptive coefficient, got {self.beta}:"
        " it is multiplied after each step."
      )
    if self.placement == "reward" and self.kl not in kl_in_reward.REWARD_KL:
      raise ValueError(
        f"kl in the reward must be one of {', '.join(kl_in_reward.REWARD_KL)},"
        f" for nothing is differentiated there; got {self.kl!r}."
      )
    if self.length is not None and (
      self.aggregation != "fixed_length" or self.length < 1
    ):
      raise ValueError(
        "length must be at least 1 token, and is for aggregation fixed_length"
        f" alone; got {self.length} with {self.aggregation}."
      )
    if self.aggregation != "method" and any(map(_has_bonus, _within(self))):
      raise ValueError(
        "aggregation must be 'method' around an entropy bonus, which is a mean"
        f" by the weights inside; got {self.aggregation!r}: put TopEntropyMask"
        " around KlAndAggregation."
      )

  def _aggregation(self) -> types.Weighting:
    knobs = {}
    if self.aggregation in _OVER_ROWS:
      knobs["count_empty_rows"] = self.count_empty_rows
    if self.aggregation == "fixed_length":
      knobs["length"] = self.length
    return functools.partial(_AGGREGATIONS[self.aggregation], **knobs)

  def _coef(self) -> float | str:
    return "kl_coef" if self.coefficient == "adaptive" else self.beta

  def _penalty(self) -> penalties.Penalty:
    term = penalties.REFERENCE_KL[self.kl]
    return penalties.Penalty("reference_kl", self._coef(), term)

  def _transforms(self) -> Iterator[types.RolloutTransform]:
    if self.coefficient == "adaptive":
      yield coefficients.adaptive_kl(
        init=self.beta, target=self.target, horizon=self.horizon
      )
    if self.placement == "reward":
      estimator = kl_in_reward.REWARD_KL[self.kl]
      yield kl_in_reward.kl_in_reward(self._coef(), estimator=estimator)


def _within(config) -> Iterator[base.MethodConfig]:
  """The methods inside a method, from the outermost."""
  while isinstance(
    config := getattr(config, "method", None), base.MethodConfig
  ):
    yield config


def _has_bonus(config) -> bool:
  is_mask = isinstance(config, top_entropy_mask.TopEntropyMask)
  return is_mask and config.has_bonus


def _check_choice(name, value, choices):
  if value not in choices:
    raise ValueError(
      f"{name} must be one of {', '.join(choices)}; got {value!r}."
    )
