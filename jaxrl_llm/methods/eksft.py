"""EKSFT: SFT that leaves out the tokens of highest entropy and highest KL.

    M_H  = the floor(ratio M) tokens of largest entropy H
    M_K  = the floor(ratio M) tokens of largest K = KL(p || p_ref)
    loss = mean_kept(-logprobs) - lam_h mean_{M_H}(H / ln V)
           + lam_k mean_{M_K}(K)

with M the number of tokens of the batch's answers and kept those not in
M_H | M_K. Where the model is torn between continuations, or has gone far from
where it began, the one answer of the data is not forced on it; there it is
kept open and near. Meant as a start for reinforcement learning.

Against GRPO it changes:
  plan       completions are the data's own answers (`jaxrl sft`)
  advantage  none
  weighting  every token of the batch counts the same
  objective  cross-entropy of some tokens, entropy and KL of the others

H and K are of the policy before the update, over the whole vocabulary, ranked
over a whole optimizer batch however it is cut (the paper's micro-batch is then
a batch of one piece). Until some K reaches 1e-8, as at the first step, nothing
tells M_K, which is empty: our reading. The released code differs in three
ways, by official: R is the mean of sum_v p (p - log p_ref); a token is left
out by the scores of the token after it (a last token is then never left out:
we score no token after the end); adjust does not last.

arXiv:2605.29303.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import imitation, ranks, weighting
from jaxrl_llm.transforms import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eksft(base.MethodConfig):
  """EKSFT, with the coefficients of its script."""

  ratio: float = 0.2
  """share of the tokens in M_H and in M_K; [0, 1], 0 is SFT (its top_ratio)"""
  combine: Literal["union", "intersection"] = "union"
  """left out: what is in one of the two (the script) or in both (the code's
  default)"""
  lam_h: float = 0.05
  """coefficient of the entropy bonus; 0 or more (the code's default: 1)"""
  lam_k: float = 0.05
  """coefficient of the KL penalty; 0 or more (the code's default: 0.5)"""
  adjust: bool = False
  """multiplies at each step lam_h by 1.05 if the mean of H / ln V is below 0.5,
  lam_k by 1.05 if that of K is above 2, each else by 0.95"""
  official: bool = False
  """as the released code: see above"""
  least_kl: float = 1e-8
  """nats; M_K is empty while no K reaches it, 0: never"""

  def build(self) -> base.Method:
    """Composes the method."""
    self._check()
    lasting = self.adjust and not self.official
    needs = {"entropy", "reference_kl", "now_scores"}
    return base.Method(
      transform=self._lasting() if lasting else chain.identity(),
      advantage=base.no_credit,
      weighting=weighting.token_mean,
      prepare=self._prepare,
      objective=functools.partial(
        imitation.selective_cross_entropy,
        probability_for_logprob=self.official,
      ),
      needs=frozenset(needs | ({"collision"} if self.official else set())),
      min_group_size=1,
      supervised=True,
    )

  def _check(self):
    if not 0 <= self.ratio <= 1:
      raise ValueError(f"ratio must be in [0, 1], got {self.ratio}.")
    if self.combine not in ("union", "intersection"):
      raise ValueError(
        f"combine must be union or intersection, got {self.combine!r}."
      )
    for name in ("lam_h", "lam_k", "least_kl"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name} must be 0 or more and finite, got {getattr(self, name)}."
        )

  def _prepare(self, rollout, advantages, scores):
    """Writes what the objective reads: weights of its three means, lam."""
    del advantages
    valid = rollout.mask & (rollout.weights > 0)[:, None]
    found = self._select(scores, valid)
    imitated, explored, anchored = imitation.means(
      valid & ~found.drop, found.entropy, found.kl
    )
    return rollout.replace(
      extras=rollout.extras
      | {"imitated": imitated, "explored": explored, "anchored": anchored}
      | self._coefficients(rollout, scores, explored, anchored)
    )

  def _select(self, scores, valid) -> imitation.Selection:
    knobs = {
      "count": ranks.share(self.ratio, valid),
      "combine": self.combine,
      "least_kl": self.least_kl,
    }
    if not self.official:
      return imitation.select(
        scores.entropy, scores.reference_kl, valid, **knobs
      )
    # Its rows are those that read an answer's token, not those that predict it.
    reads = valid & jnp.roll(valid, 1, axis=1).at[:, 0].set(False)
    found = imitation.select(
      scores.entropy, scores.reference_kl, reads, **knobs
    )
    return found._replace(drop=imitation.one_before(found.drop))

  def _start(self) -> dict[str, jax.Array]:
    return {"lam_h": jnp.float32(self.lam_h), "lam_k": jnp.float32(self.lam_k)}

  def _lasting(self) -> types.RolloutTransform:
    """The coefficients of one step are where the next one starts."""

    def update(rollout, state):
      return rollout.replace(extras=rollout.extras | state), state

    def observe(state, metrics):
      means = metrics["normalized_entropy"], metrics["selected_kl"]
      found = imitation.adjusted(*state.values(), *means)
      empty = metrics["token_weight"] == 0
      return {
        name: jnp.where(empty, state[name], value)
        for name, value in zip(state, found, strict=True)
      }

    return types.RolloutTransform(self._start, update, observe)

  def _coefficients(
    self, rollout, scores, explored, anchored
  ) -> dict[str, jax.Array]:
    start = self._start()
    if not self.adjust:
      return start
    now = {name: rollout.extras.get(name, start[name]) for name in start}
    adjusted = imitation.adjusted(
      now["lam_h"],
      now["lam_k"],
      imitation.normalized_entropy(scores, explored),
      imitation.mean_kl(
        scores, anchored, probability_for_logprob=self.official
      ),
    )
    return dict(zip(start, adjusted, strict=True))
