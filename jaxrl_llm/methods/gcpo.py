"""GCPO: a token's credit grows with what a negative prompt changes about it.

    d    = clip(negative_logprobs - logprobs, -20, 20)
    D    = min(exp(d) - d - 1, 10)
    w_it = n_i u_it^kappa / sum_s u_is^kappa,  u = rank of D in its row / n_i
    l    = -min(r w A, clip(r, 1 - clip_low, 1 + clip_high) w A)
    loss = sum_it [min(l, -dual_clip w A) if A < 0 else l] / M
           - entropy_penalty mean(logprobs)

with A as in GRPO, n_i the tokens of a completion, M those of the batch. The
negative prompt is the prompt with `instruction` after it; kappa is such that
the share `top` of the tokens has the share `mass` of the weight.

Against GRPO it changes:
  plan       writes and tokenises the negative prompts
  passes     scores the completions under them
  transform  drops groups whose mean reward is not between low and high
  advantage  w_it A_i in the place of A_i; the mean over a row is A_i
  weighting  every token of the batch counts the same
  objective  dual clip, clip_high > clip_low; a penalty in the place of an
             entropy bonus; no KL

Weights are taken once a rollout, from two forwards of the policy before its
first update: the authors' code takes them again at each. The paper's abstract
has credit in proportion to the difference, the code uses its rank alone:
`weights` has both, "linear" being our reading of the abstract. That equal D
share their mean rank is ours too: a prompt that changes nothing then is GRPO.
A negative prompt has room for `room` tokens more than prompt_length.

DynamicSampling(method=Gcpo(), low=0.01, high=0.99) samples other prompts in the
place of those that are dropped.

GCPO, arXiv:2605.29198.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.advantages import contrast, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import penalties, policy, surrogates, weighting
from jaxrl_llm.rollout import negative_prompts
from jaxrl_llm.transforms import filters

_LOGPROBS = "negative_logprobs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gcpo(base.MethodConfig):
  """GCPO, as its authors run it on language models."""

  instruction: str = "Intentionally generate an incorrect answer."
  """follows the problem's own words on a line of its own"""
  negative: negative_prompts.Form = "instruction"
  """the negative prompt has the instruction, or is empty but for the run's
  template"""
  room: int = 32
  """tokens that the instruction may add to the run's prompt_length; each costs
  a token of the second forward"""
  weights: Literal["rank", "linear"] = "rank"
  """by the rank of D (official code: hist), or in proportion to D"""
  ties: contrast.Ties = "mean"
  """equal D share their mean rank, or are ranked in the order of the tokens
  (official code)"""
  top: float = 0.4
  """share of a completion's tokens, those of largest D, ..."""
  mass: float = 0.8
  """... that has this share of the weight, with weights rank; equal to top:
  all tokens alike, GRPO"""
  low: float = 0.01
  """groups whose mean reward is at most this are dropped (with rewards of 0
  and 1 the accuracy); -inf: none"""
  high: float = 0.99
  """groups whose mean reward is at least this are dropped; inf: none"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 3.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  entropy_penalty: float = 0.02
  """coefficient of the mean of -logprobs, which is minimised; 0: none"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-6
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    return base.Method(
      plan=negative_prompts.negative_prompts(
        form=self.negative, instruction=self.instruction, room=self.room
      ),
      passes=(
        types.Pass(_LOGPROBS, negative_prompts.PROMPTS, negative_prompts.MASK),
      ),
      transform=filters.keep_means_between(self.low, self.high),
      advantage=self._advantage(),
      weighting=weighting.token_mean,
      objective=policy.policy_objective(
        surrogate=lambda tokens: surrogates.dual_clip_surrogate(
          tokens.log_ratio,
          tokens.advantages,
          clip_low=self.clip_low,
          clip_high=self.clip_high,
          dual_clip=self.dual_clip,
        ),
        penalties=self._penalties(),
      ),
      needs=frozenset({"old_scores"}),
    )

  def _advantage(self):
    weigh = self._weights()

    def advantage(rollout):
      credit = group.group_normalized(
        rollout.rewards,
        rollout.weights,
        group_size=rollout.group_size,
        ddof=self.ddof,
        eps=self.eps,
      )
      mask = rollout.mask & (rollout.weights > 0)[:, None]
      # The trainer's own, as the other forward is: the sampler's are rounded.
      own, other = (
        jnp.where(mask, rollout.extras[name], 0.0)
        for name in ("trainer_logprobs", _LOGPROBS)
      )
      return credit[:, None] * weigh(contrast.contrast(own, other), mask)

    return advantage

  def _weights(self):
    kappa = contrast.concentration(top=self.top, mass=self.mass)
    choices = {
      "rank": lambda values, mask: contrast.rank_weights(
        values, mask, kappa=kappa, ties=self.ties
      ),
      "linear": contrast.linear_weights,
    }
    if self.ties not in ("mean", "order"):
      raise ValueError(f"ties must be mean or order, got {self.ties!r}.")
    if self.weights not in choices:
      raise ValueError(f"weights must be rank or linear, got {self.weights!r}.")
    return choices[self.weights]

  def _penalties(self):
    coef = self.entropy_penalty
    if not 0 <= coef < float("inf"):
      raise ValueError(
        f"entropy_penalty must be 0 or more and finite, got {coef}."
      )
    if not coef:
      return ()
    return (
      penalties.Penalty("sampled_entropy", coef, penalties.negative_logprob),
    )
