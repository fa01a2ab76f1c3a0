"""VERL: a bonus from the effective rank of the hidden states and its velocity.

Around another method. ER is the effective rank of a completion's final hidden
states, e_j that of its first j stride + 1 (of the last max_length),

    v_j   = e_j - mean(e_1 .. e_{j-1}),  a_j = v_j - v_{j-1}
    d_m   = clip((x_m - b_m) / (|b_m| + 1e-8), -5, 5)
            m of ERA = mean_j a_j, ERV = mean_j v_j, ER
    tau   = sigmoid(gain d_ERA),  w = tau explore + (1 - tau) exploit
    Phi   = lam sum_m w_m tanh(d_m)
    A     = A0 + min(relu(Phi), |A0| / kappa)

with A0 the method's credit and b the running means of the three. By default
Phi = tau tanh(d_ER) + (1 - tau) tanh(d_ERV): where the rank gains speed its
height is rewarded, else its velocity. No sign of A0 changes; blame is softened.

Against GRPO it changes:
  measure    effective ranks, from the forward before the update
  transform  Phi; the running means
  advantage  the bonus

The name is Velocity-Exploiting Rank-Learning's, not the training library's.
Our readings: the states are the final layer's at each completion token; every
token of a completion gets the bonus, where the official code gives it to the
last one alone (spread). With the switches that were published the official
code leaves the bonus out. The first step has none; the second measures against
b = 0, so that every deviation is at its bound (start="first": against the
first step). An eigenvalue decomposition a prefix and row is slow on a TPU.

VERL: Beyond the Exploration-Exploitation Trade-off, arXiv:2509.23808.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxrl_llm.advantages import hidden_rank, token
from jaxrl_llm.methods import base, grpo
from jaxrl_llm.transforms import chain, rank_guidance


def _grpo() -> grpo.Grpo:
  return grpo.Grpo(beta=0.001, entropy_coef=0.001, eps=1e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerlRank(base.MethodConfig):
  """VERL around GRPO, as published but for the spread of the bonus."""

  method: base.MethodConfig = dataclasses.field(default_factory=_grpo)
  """whose credit is shaped: any, with a critic too"""
  stride: int = 40
  """tokens from one prefix to the next"""
  max_length: int = 512
  """tokens that the prefixes are taken from, a completion's last"""
  gain: float = 2.0
  """g, of the controller tau; 0 or more"""
  kappa: float = 2.0
  """the bonus is at most |A0| / kappa; at least 1"""
  lam: float = 1.0
  """multiplies Phi; 0: the base method"""
  dynamic: bool = False
  """multiplies Phi by 1 - (P + 1) / 2 too, P the running mean of the rewards,
  which should be in [-1, 1]: less bonus as the policy gets better"""
  rho: float = 0.3
  """share of the newest means in b and P, (0, 1]"""
  explore: tuple[float, float, float] = (0.0, 0.0, 1.0)
  """weights of ERA, ERV, ER at tau = 1"""
  exploit: tuple[float, float, float] = (0.0, 1.0, 0.0)
  """weights of ERA, ERV, ER at tau = 0"""
  spread: Literal["all", "last"] = "all"
  """which tokens get the bonus: all, or the last one (official code)"""
  start: Literal["zero", "first"] = "zero"
  """b before the second step: 0 (official code) or the first step's means"""

  def build(self) -> base.Method:
    """Composes the method."""
    prefixes = {"stride": self.stride, "max_length": self.max_length}
    hidden_rank.check_prefixes(**prefixes)
    rank_guidance.check_kappa(self.kappa)
    if self.spread not in ("all", "last"):
      raise ValueError(f"spread must be all or last, got {self.spread!r}.")
    inner = self.method.build()

    def measure(scores, rollout):
      dynamics = hidden_rank.rank_dynamics(
        scores.token_hidden, rollout.mask, **prefixes
      )
      found = inner.measure(scores, rollout)
      return found | {rank_guidance.DYNAMICS: dynamics}

    def advantage(rollout):
      credit = base.per_token(inner.advantage(rollout), rollout.mask)
      return credit + self._bonus(rollout, credit)

    return dataclasses.replace(
      inner,
      measure=measure,
      transform=chain.chain(inner.transform, self._guidance()),
      advantage=advantage,
      needs=inner.needs | {"token_hidden", "old_scores"},
    )

  def _guidance(self):
    return rank_guidance.rank_guidance(
      gain=self.gain,
      rho=self.rho,
      lam=self.lam,
      dynamic=self.dynamic,
      explore=self.explore,
      exploit=self.exploit,
      start=self.start,
    )

  def _bonus(self, rollout, credit):
    signal = rollout.extras[rank_guidance.SIGNAL]
    bonus = rank_guidance.rank_bonus(credit, signal, kappa=self.kappa)
    if self.spread == "last":
      ones = jnp.ones_like(rollout.rewards)
      bonus *= token.last_token_rewards(ones, rollout.mask)
    return bonus
