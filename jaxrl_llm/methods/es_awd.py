"""ES with AWD: evolution strategies whose weights are pulled to their start.

The model is tried with noise on its weights; each noise counts by how well its
model did. No backward pass and no optimizer. The pull, anchored weight decay,
holds what the model knew: the weights drift most where the reward says nothing.
With theta0 the weights before the first step, P = population, D parameters:

    f_j   = mean reward of theta + sigma eps_j,  eps_j ~ N(0, I) of seed_j
    z     = (f - mean f) / (std f + eps)                       std over P
    theta = theta + alpha / P sum_j z_j eps_j
    d     = theta - theta0
    theta = theta0 + sign(d) max(|d| - alpha lam, 0)           norm "l1"
    theta = theta - alpha lam d                                norm "l2"

There is no loss. A member answers the step's B prompts greedily, once each, by
the run's own sampler and rewards; the noise is drawn again from the member's
seed when the weights move, and never kept.

Against GRPO it changes:
  plan  one greedy completion a prompt, by each of P perturbed models
  objective  none, and so no advantage, weighting or transform
  update  the weights move along the noise; the decay follows

Our readings: the l1 decay is a proximal step; both decays are times alpha; a
fitness that is not finite is the least of the step. A completion that cannot be
scored is left out of its member's mean.

Traps: group_size, micro_batches, sampling and the optimizer's options are not
read; alpha has 1 / sigma in it, so the two are tuned together, and their
defaults are for a pretrained model. Without the decay the drift grows as alpha
(T D / P)^1/2 in T steps, whatever the reward; lam is tuned from high downwards,
and 128 members or more do without. A step costs P rollouts of B prompts: few
prompts make a coarse fitness, and equal ones move nothing.

The strategy: Qiu et al. 2025, Evolution Strategies at Scale, arXiv:2509.24372.
The decay: Evolution strategies with anchored weight decay, arXiv:2605.30148.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.methods import base
from jaxrl_llm.optimizers import anchored, evolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class EsAwd(base.EvolutionConfig):
  """Evolution strategies with anchored weight decay, as published."""

  sigma: float = 1e-3
  """deviation of the noise on each weight; positive"""
  alpha: float = 5e-4
  """step size, with 1 / sigma in it; positive"""
  population: int = 30
  """P, perturbed models a step; 1 moves nothing"""
  lam: float | None = None
  """strength of the decay, times alpha; 0: none; None: 0.01 in l1, 10 in l2"""
  norm: anchored.Norm = "l1"
  """l1: drift shrinks by alpha lam, a smaller one to exactly 0; l2: by the
  share alpha lam, below 1; l1_sign: l1 by its subgradient"""
  eps: float = 1e-8
  """added to the deviation of the fitness, in units of reward"""
  weights: Literal["float32", "bfloat16"] = "float32"
  """dtype that theta and theta0 are kept in; bfloat16, the paper's, halves both
  and rounds each update to it. An adapter's are float32"""
  members_at_once: int = 1
  """models that are evaluated side by side, on one device alone; divides P"""

  def build(self) -> base.Evolution:
    """Composes the method."""
    lam = self._lam()
    anchored.check_anchor(lam, norm=self.norm, learning_rate=self.alpha)
    return base.Evolution(
      population=self.population,
      members_at_once=self.members_at_once,
      weights=self.weights,
      perturb=lambda params, seed: evolution.perturbed(
        params, seed, sigma=self.sigma
      ),
      update=lambda *args: self._update(lam, *args),
    )

  def _lam(self) -> float:
    """The strength, every other field checked on the way."""
    for name in ("sigma", "alpha", "eps"):
      if not 0 < getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name} must be positive and finite, got {getattr(self, name)}."
        )
    if self.population < 1:
      raise ValueError(f"population must be at least 1, got {self.population}.")
    if self.members_at_once < 1 or self.population % self.members_at_once:
      raise ValueError(
        f"members_at_once must divide population = {self.population}, got"
        f" {self.members_at_once}."
      )
    if self.weights not in ("float32", "bfloat16"):
      raise ValueError(
        f"weights must be float32 or bfloat16, got {self.weights!r}."
      )
    if self.lam is not None:
      return self.lam
    return 10.0 if self.norm == "l2" else 0.01

  def _update(self, lam, params, start, seeds, fitness):
    """(params, metrics): one step of theta, in the dtypes it is kept in."""
    z = evolution.standardized(fitness, eps=self.eps)
    ascent = evolution.ascent(params, seeds, z)
    moved = jax.tree.map(lambda x, way: x + self.alpha * way, params, ascent)
    if lam:
      moved = anchored.pulled(moved, start, self.alpha * lam, norm=self.norm)
    new = jax.tree.map(lambda x, like: x.astype(like.dtype), moved, params)
    known = evolution.finite(fitness)
    return new, {
      "fitness/mean": known.mean(),
      "fitness/max": known.max(),
      "fitness/std": known.std(),
      "fitness/failed": (~jnp.isfinite(fitness)).mean(),
      "update_norm": self.alpha * optax.tree.norm(ascent),
      "drift_norm": anchored.drift_norm(new, start),
    }
