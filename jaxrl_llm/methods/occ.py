"""OCC: trains a multi-token-prediction module with the policy's own loss.

    dR   = logprobs - old_logprobs,  dM = mtp_logprobs - old_logprobs
    lam  = lam0 sum(dR dM) / (sum(dM^2) + 1e-8)
    c    = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
    l    = min(c, -dual_clip A) if A < 0 else c,  r = exp(log-prob - old)
    loss = sum_it [l(logprobs, A) + l(mtp_logprobs, lam A)] / M

with A as in GRPO and M the number of tokens. mtp_logprobs are of the same
tokens, said one token earlier by a module (models/mtp.py) that shares the
policy's embedding and head; its gradient goes on into the policy. lam, a
constant found anew for each optimizer batch, is the share of the main head's
change that the module's explains. It is inside the advantage, so that a
negative one swaps the side that is clipped.

Against GRPO it changes:
  transform  counts the steps of the module's warm-up
  weighting  every token of the batch counts the same
  objective  a second policy loss, of the module; dual clip, no KL

`mtp` chooses what the module is trained with. Metrics: mtp_lam, mtp_loss, and
mtp_nll, the nats a token that its predictions cost. One module, K = 1. Our
readings: it has an optimizer of its own; it starts from random weights, not, as
the paper's, trained with its model, so that for `warmup` steps it only learns
to predict; padding counts in neither calibration, which is of the whole batch.

Traps: lam is 0 where nothing has moved since sampling. With one update a
rollout, on-policy, "occ" teaches the module nothing: it takes mini_batches or
epochs above 1, rollout_ahead, or old_logprobs "sampler".

Optimal coefficient calibration, 2026, arXiv:2605.28184.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base
from jaxrl_llm.models import mtp as modules
from jaxrl_llm.objectives import calibration, policy, surrogates, weighting

REGIMES = ("occ", "policy", "ce", "detach")
# In extras: the coefficient of the module's policy loss, that of its
# cross-entropy, and the share of their gradient that the policy feels.
_LAM, _CE, _SHARE = "mtp_lam", "mtp_ce", "mtp_share"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Occ(base.MethodConfig):
  """OCC, with the constants of DAPO as its run has them."""

  mtp: Literal["occ", "policy", "ce", "detach"] = "occ"
  """what trains the module: the policy loss with lam A (occ) or lam0 A
  (policy); cross-entropy on the samples, whose gradient the policy feels (ce)
  or not (detach)"""
  lam0: float = 1.0
  """lam at full agreement, and the coefficient of the other regimes; not
  negative (the run's mtp_loss_scaling_factor, 0.1)"""
  calibration: Literal["inner", "elementwise_mean"] = "inner"
  """inner product over squared norm (paper), or the mean of the tokens' own
  quotients dR / dM (code): tokens whose dM is near 0 then decide"""
  warmup: int = 20
  """steps in which the module is trained as by detach, whatever `mtp` says;
  0: as published, for a module that comes trained"""
  mtp_rate: float = 1.0
  """learning rate of the module over the policy's; positive"""
  clip_low: float = 0.2
  """how far the ratio may fall below 1; (0, 1]"""
  clip_high: float = 0.28
  """how far the ratio may rise above 1; positive"""
  dual_clip: float = 10.0
  """the ratio beyond which negative advantages have no gradient; above
  1 + clip_high (verl clip_ratio_c)"""
  ddof: Literal[0, 1] = 1
  """std over G - 1 (1, as TRL and verl) or over G (0)"""
  eps: float = 1e-4
  """added to the std, in units of reward (TRL 1e-4, verl 1e-6)"""

  def build(self) -> base.Method:
    """Composes the method."""
    surrogates.check_clip(self.clip_low, self.clip_high)
    surrogates.check_dual_clip(self.dual_clip, clip_high=self.clip_high)
    group.check_std(ddof=self.ddof, eps=self.eps)
    _choose("mtp", self.mtp, REGIMES)
    _choose("calibration", self.calibration, calibration.CALIBRATIONS)
    if not 0 <= self.lam0 < float("inf"):
      raise ValueError(f"lam0 must be 0 or more and finite, got {self.lam0}.")
    if self.warmup < 0:
      raise ValueError(f"warmup must be 0 or more, got {self.warmup}.")
    calibrated = self.mtp == "occ"
    return base.Method(
      advantage=base.from_rewards(
        group.group_normalized, ddof=self.ddof, eps=self.eps
      ),
      transform=self._coefficients(),
      prepare=self._calibrate if calibrated else base.as_it_is,
      weighting=weighting.token_mean,
      objective=_with_module(
        policy.policy_objective(
          surrogate=lambda tokens: surrogates.dual_clip_surrogate(
            tokens.log_ratio,
            tokens.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
          ),
        )
      ),
      needs=frozenset({"mtp_logprobs", *(["now_scores"] * calibrated)}),
      head=modules.MtpModule(trunk_gradient=self._share(), rate=self.mtp_rate),
    )

  def _share(self):
    """Of the gradient that the policy feels: a constant where it is one."""
    if self.mtp == "detach":
      return 0.0
    return _SHARE if self.warmup else 1.0

  def _coefficients(self):
    """Writes what the module is trained with at this step."""
    after = {
      "occ": (1.0, 0.0, 1.0),  # times lam, which `prepare` finds
      "policy": (self.lam0, 0.0, 1.0),
      "ce": (0.0, self.lam0, 1.0),
      "detach": (0.0, self.lam0, 0.0),
    }

    def update(rollout, step):
      first, then = (jnp.array(after[k]) for k in ("detach", self.mtp))
      now = jnp.where(step < self.warmup, first, then)
      found = dict(zip((_LAM, _CE, _SHARE), now, strict=True))
      return rollout.replace(extras=rollout.extras | found), step + 1

    return types.RolloutTransform(lambda: jnp.zeros((), jnp.int32), update)

  def _calibrate(self, rollout, advantages, scores):
    del advantages
    lam = calibration.CALIBRATIONS[self.calibration](
      scores.logprobs,
      scores.mtp_logprobs,
      rollout.old_logprobs,
      modules.predicted(rollout) & (rollout.weights > 0)[:, None],
      lam0=self.lam0,
    )
    lam *= rollout.extras[_LAM]
    return rollout.replace(extras=rollout.extras | {_LAM: lam})


def _with_module(loss_of: types.ObjectiveFn) -> types.ObjectiveFn:
  """The loss of the main head, then of the module where it predicts."""

  def objective(scores, rollout, advantages, weights):
    loss, metrics = loss_of(scores, rollout, advantages, weights)
    ahead = scores.mtp_logprobs
    seen = jnp.where(modules.predicted(rollout), weights, 0.0)
    lam, ce = rollout.extras[_LAM], rollout.extras[_CE]
    own, _ = loss_of(
      types.Scores(logprobs=ahead), rollout, lam * advantages, seen
    )
    nll = -(seen * jnp.where(seen != 0, ahead, 0.0)).sum()
    added = own + ce * nll
    found = {
      "loss": loss + added,
      "mtp_loss": added,
      "mtp_nll": nll,
      "mtp_lam": lam * weights.sum(),
    }
    return loss + added, metrics | jax.lax.stop_gradient(found)

  return objective


def _choose(name, value, legal):
  if value not in legal:
    raise ValueError(
      f"{name} must be one of {', '.join(legal)}; got {value!r}."
    )
