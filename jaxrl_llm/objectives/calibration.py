"""How much a multi-token-prediction loss counts: it follows the main head's.

With dR = logprobs - old_logprobs of the main head and dM = mtp_logprobs -
old_logprobs of the module, over the tokens of a batch that both predict.
Positive where the two move together, negative where they part.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Beside squares, as in the paper and its code.
_EPS = 1e-8


def inner_coefficient(
  logprobs: Float[Array, "N T"],
  mtp_logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  lam0: float = 1.0,
) -> Float[Array, ""]:
  """Least squares: by how much dM explains dR (OCC, the paper's form).

    lam = lam0 sum(dR dM) / (sum(dM^2) + 1e-8)

  The step lam along dM that stays nearest to dR: lam0 where dM = dR, 0 where
  the two are orthogonal or dR = 0. |lam| <= lam0 |dR| / |dM|.

  Args:
    logprobs: of the policy now, in nats.
    mtp_logprobs: of the same tokens by the module, in nats.
    old_logprobs: of the policy that sampled, in nats; both are relative to it.
    mask: true on tokens that count; the rest may hold anything.
    lam0: the coefficient at full agreement; of K modules each has lam0 / K.

  Returns:
    A constant: no gradient passes.

  References:
    arXiv:2605.28184.
  """
  dr, dm = _changes(logprobs, mtp_logprobs, old_logprobs, mask)
  return lam0 * (dr * dm).sum() / ((dm * dm).sum() + _EPS)


def elementwise_coefficient(
  logprobs: Float[Array, "N T"],
  mtp_logprobs: Float[Array, "N T"],
  old_logprobs: Float[Array, "N T"],
  mask: Bool[Array, "N T"],
  *,
  lam0: float = 1.0,
) -> Float[Array, ""]:
  """The mean of the tokens' own quotients (OCC, the form of its code).

    lam = lam0 mean(dR dM / (dM^2 + 1e-8))

  Tokens whose dM is near 0 have most of it. The code takes the mean over all
  entries, padding too, of each micro-batch; here it is over the mask, of the
  whole batch.

  Args: as of inner_coefficient.

  References:
    MarkXCloud/RL-MTP at a63fdc2, actor/megatron_actor.py.
  """
  dr, dm = _changes(logprobs, mtp_logprobs, old_logprobs, mask)
  quotients = dr * dm / (dm * dm + _EPS)
  return lam0 * quotients.sum() / jnp.maximum(mask.sum(), 1)


CALIBRATIONS: dict[str, Callable] = {
  "inner": inner_coefficient,
  "elementwise_mean": elementwise_coefficient,
}


def _changes(logprobs, mtp_logprobs, old_logprobs, mask):
  """dR and dM, constants, 0 outside the mask."""
  chex.assert_equal_shape([logprobs, mtp_logprobs, old_logprobs, mask])
  found = jax.lax.stop_gradient((logprobs, mtp_logprobs, old_logprobs))
  main, ahead, old = (jnp.where(mask, x, 0.0) for x in found)
  return main - old, ahead - old
