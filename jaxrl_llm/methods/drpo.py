"""DRPO: right answers compete in length among themselves, not with wrong ones.

    s_i  = mean_t logprobs_it,  len_i = n_i / max_length
    w_i  = exp(-len_i / lam) / sum_{j right} exp(-len_j / lam)
    J_q  = sum_{i right} w_i s_i - tau log(mean_{j wrong} exp(s_j / tau))
    KL   = mean over tokens of old_logprobs - logprobs
    loss = -(1 / B) sum_q J_q + sg(max(0, beta (KL - delta))) KL

over the B prompts of a batch; one without both kinds of answers has no J but
stays in B. A length in GRPO's reward can make a long right answer worse than
the mean of its group, and it is unlearnt. Here its coefficient is w_i > 0.

Against GRPO it changes:
  transform  shares of credit by length, from rewards that are right or wrong
  advantage  w_i of a right answer, -1 / (their number) of a wrong one
  prepare    the wrong answers' softmax and the KL, on the whole batch
  weighting  every token of the batch counts the same, in the KL
  objective  a score of whole completions, no ratio, no clip; a KL to the old
             policy that is charged beyond delta

The log-mean-exp and the KL are of the policy as it is at each update: one
forward more an update. Lengths are shares of max_length, a constant: of the
longest completion of a batch they would be another reward every step.

The authors' code writes the term of the wrong answers so that its value is
tau and its gradient that of the formula: `report` has both.

Our readings: `threshold` says what is right, where the paper has rewards of 0
and 1; a mini-batch that cuts a group keeps the credit of the whole group, takes
the log-mean-exp over the wrong answers that are left, and counts in B the
share of the prompt that it holds.

Li et al. 2025, DRPO, arXiv:2510.04474.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import decoupled
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import (
  discriminative,
  kl,
  penalties,
  policy,
  ratios,
  weighting,
)
from jaxrl_llm.transforms import chain

_KL = {"kl": kl.k1, "low_var_kl": kl.k3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drpo(base.MethodConfig):
  """DRPO, as published."""

  lam: float = 0.1
  """lambda, share of max_length that costs a right answer a factor e of its
  weight; larger: longer, more accurate; inf: lengths do not matter (DisCO)"""
  tau: float = 10.0
  """nats a token by which a wrong answer must be likelier to be blamed e times
  as much"""
  beta: float = 1e3
  """coefficient of the KL to the old policy, per nat beyond delta; 0: none"""
  delta: float = 1e-4
  """nats a token that the policy may leave the old one for free"""
  kl_type: Literal["kl", "low_var_kl"] = "kl"
  """estimator of that KL, with d = old_logprobs - logprobs: d, or
  exp(-d) + d - 1"""
  max_length: int | None = None
  """length that counts as 1, in tokens; None takes the run's
  completion_length"""
  threshold: float | None = 0.5
  """a reward above it is a right answer, any other a wrong one; None: right is
  exactly 1, wrong exactly 0, any other reward is neither (the paper)"""
  report: discriminative.Report = "formula"
  """value of the loss that is logged: by the formula, or that of the authors'
  code; the gradient is the same"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    return base.Method(
      transform=chain.stateless(self._credit),
      advantage=lambda rollout: rollout.extras["decoupled_credit"],
      prepare=self._prepare,
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=_surrogate,
        penalties=(penalties.Penalty("old_kl", "old_kl_coef", self._old_kl),),
      ),
      needs=frozenset({"now_scores"}),
    )

  def _credit(self, rollout):
    """Writes A [N], and of which share of a prompt each row speaks."""
    counted, size = rollout.weights > 0, rollout.group_size
    right, wrong = decoupled.right_and_wrong(
      rollout.rewards, rollout.weights, threshold=self.threshold
    )
    lengths = rollout.mask.sum(axis=1, dtype=rollout.old_logprobs.dtype)
    credit = decoupled.decoupled_credit(
      right,
      wrong,
      lengths / (self.max_length or rollout.mask.shape[1]),
      group_size=size,
      temperature=self.lam,
    )
    rows = counted.reshape(-1, size).sum(axis=1)
    shares = counted / jnp.repeat(jnp.maximum(rows, 1), size)
    extras = {"decoupled_credit": credit, "prompt_share": shares}
    return rollout.replace(extras=rollout.extras | extras)

  def _prepare(self, rollout, advantages, scores):
    """Writes dJ / d logprobs [N, T], -J, and what the KL costs now."""
    del advantages  # a row without tokens has lost its credit there
    weights = weighting.token_mean(rollout.mask, rollout.weights)
    counted = weights > 0
    gradient, value = discriminative.against_the_likeliest(
      rollout.extras["decoupled_credit"],
      discriminative.mean_logprob(scores.logprobs, counted),
      group_size=rollout.group_size,
      tau=self.tau,
      report=self.report,
    )
    prompts = rollout.extras["prompt_share"].sum()
    prompts = jnp.where(prompts > 0, prompts, 1.0)
    # The objective weighs each token with `weights`: that is taken out here.
    count = jnp.maximum(counted.sum(axis=1), 1)
    each = (gradient / count / prompts)[:, None]
    each /= jnp.where(counted, weights, 1.0)
    distance = (weights * self._old_kl(scores, rollout)).sum()
    extras = {
      "score_gradient": jnp.where(counted, each, 0.0),
      "score_loss": -value / prompts,
      "old_kl_coef": jnp.maximum(self.beta * (distance - self.delta), 0.0),
    }
    return rollout.replace(extras=rollout.extras | extras)

  def _old_kl(self, scores, rollout):
    """KL(pi_old || pi) of each token, 0 on padding and on dropped rows."""
    counted = rollout.mask & (rollout.weights > 0)[:, None]
    d = ratios.token_log_ratio(
      rollout.old_logprobs, scores.logprobs, counted, limit=float("inf")
    )
    return _KL[self.kl_type](d)

  def _check(self):
    if not self.lam > 0:
      raise ValueError(f"lam must be positive, got {self.lam}.")
    if not 0 < self.tau < float("inf"):
      raise ValueError(f"tau must be positive and finite, got {self.tau}.")
    for name in ("beta", "delta"):
      value = getattr(self, name)
      if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
    if self.kl_type not in _KL:
      raise ValueError(
        f"kl_type must be kl or low_var_kl, got {self.kl_type!r}."
      )
    if self.threshold is not None and math.isnan(self.threshold):
      raise ValueError("threshold must be a number or None, got nan.")
    if self.max_length is not None and self.max_length < 1:
      raise ValueError(f"max_length must be at least 1, got {self.max_length}.")
    if self.report not in ("formula", "code"):
      raise ValueError(f"report must be formula or code, got {self.report!r}.")


def _surrogate(tokens):
  """The value -J at every token, the gradient of the token's own."""
  own = tokens.rollout.extras["score_gradient"] * tokens.logprobs
  value = jnp.broadcast_to(tokens.rollout.extras["score_loss"], own.shape)
  return kl.straight_through(value, -own), {}
