"""AWM: the pre-training loss, weighed by the advantage, is the objective.

    S_i  = mean_t logprobs_it;  rho_i = exp(S_i - sg(S_old_i))
    A_i  = adv_max / adv_clip
           clip((r_i - mean_g) / (std(r) + eps), -adv_clip, adv_clip)
    loss = mean_i [max(-A rho, -A clip(rho, 1 - clip, 1 + clip))
                   + mean_t (beta KL_t + ema_beta KL'_t)]

S is minus the loss that a language model is pre-trained with. KL is to the
frozen reference, KL' to a slow average of the policy itself, which anchors a
step without holding back a run: shadow <- d shadow + (1 - d) policy after each
step, d = min(ema_max, ema_rate step).

Against GRPO it changes:
  advantage  over the std of all rewards of the batch, clipped and scaled
  objective  the ratio of whole completions, a far wider region; a KL to the
             slow average beside the one to the reference

Needs a copy of the trained parameters (of the adapter, with LoRA) that is
averaged, kept in the state and in checkpoints, and scores each rollout once.

All about tokens is our reading of a method for images, whose S is a random
draw of a denoising loss. Here S is exact, so that what is left is the
length-normalised policy gradient, or with score sum the plain one, as the
paper says itself; new are the scaling, the region and the slow average. KL and
KL' are in the place of squared distances of velocities. A masked-diffusion
model needs several draws of S and a decoder that is not autoregressive: there
is none here; objectives.matching has the draws.

Xue et al. 2025, Advantage Weighted Matching, arXiv:2509.25050.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import batch, group
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import (
  matching,
  penalties,
  policy,
  ratios,
  weighting,
)

_SCORES = {
  "mean": ratios.sequence_log_ratio,
  "sum": ratios.sequence_sum_log_ratio,
}
_STDS = {"global": batch.batch_normalized, "prompt": group.group_normalized}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Awm(base.MethodConfig):
  """AWM, with the constants of its authors' runs on images."""

  score: Literal["mean", "sum"] = "mean"
  """S: the mean log-prob of a completion's tokens, or their sum, which is the
  exact log-likelihood"""
  clip: float = 1.0
  """half-width of the region of rho, (0, 1]; 1: only above 2, at a positive
  advantage, there is no gradient"""
  std: Literal["global", "prompt"] = "global"
  """over G or B G: the std of all rewards of the batch, or of the prompt's"""
  adv_clip: float = 5.0
  """bound of the advantage, in stds; inf: none, and no scaling"""
  adv_max: float = 1.0
  """what the bound is scaled to"""
  beta: float = 1e-3
  """coefficient of the KL to the reference model; 0: no reference is run"""
  ema_beta: float = 1.0
  """coefficient of the KL to the slow average; 0: there is none"""
  kl: base.KlName = "exact"
  """estimator of both KL terms, see objectives.kl"""
  ema_rate: float = 1e-3
  """decay of the slow average gained with each step; 0 or more"""
  ema_max: float = 0.3
  """largest decay, [0, 1); larger: slower"""
  eps: float = 1e-4
  """added to the std, in units of reward"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    terms, needs = base.regularizers(beta=self.beta, kl=self.kl)
    if self.ema_beta:
      terms += (penalties.Penalty("shadow_kl", self.ema_beta, self._shadow_kl),)
    return base.Method(
      advantage=self._advantage,
      weighting=weighting.sequence_mean,
      objective=policy.policy_objective(
        ratio=_SCORES[self.score],
        surrogate=lambda tokens: matching.advantage_weighted_matching(
          tokens.log_ratio[None], tokens.advantages, clip=self.clip
        ),
        penalties=terms,
      ),
      needs=needs,
      shadow=self._decay if self.ema_beta else None,
    )

  def _advantage(self, rollout):
    credit = _STDS[self.std](
      rollout.rewards,
      rollout.weights,
      group_size=rollout.group_size,
      ddof=0,
      eps=self.eps,
    )
    return clipped_and_scaled(credit, bound=self.adv_clip, to=self.adv_max)

  def _shadow_kl(self, scores, rollout):
    shadow = rollout.extras["shadow_logprobs"]
    term = penalties.REFERENCE_KL[self.kl]
    return term(scores, rollout.replace(ref_logprobs=shadow))

  def _decay(self, step):
    return jnp.minimum(self.ema_max, self.ema_rate * step)

  def _check(self):
    if self.score not in _SCORES:
      raise ValueError(f"score must be mean or sum, got {self.score!r}.")
    if self.std not in _STDS:
      raise ValueError(f"std must be global or prompt, got {self.std!r}.")
    if not 0 < self.clip <= 1:
      raise ValueError(f"clip must be in (0, 1], got {self.clip}.")
    for name in ("adv_clip", "adv_max"):
      value = getattr(self, name)
      if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
    for name in ("ema_beta", "ema_rate"):
      value = getattr(self, name)
      if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
    if not 0 <= self.ema_max < 1:
      raise ValueError(f"ema_max must be in [0, 1), got {self.ema_max}.")
    base.check_kl(self.kl)
    group.check_std(ddof=0, eps=self.eps)


def clipped_and_scaled(advantages, *, bound: float, to: float):
  """clip(A, -bound, bound) * to / bound; A for a bound of inf."""
  if bound == float("inf"):
    return advantages
  return jnp.clip(advantages, -bound, bound) * (to / bound)
