"""Cases of policy_loss: ragged sizes, KL, credit per token, masks, bounds."""

import jax.numpy as jnp
import numpy as np

import op_cases
from pallas_kernels import policy_loss

# Only log-probs have a gradient; for the others the reference's is 0 and so
# is that of every implementation.
_CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def problem(
  dtype,
  *,
  size,
  ref=True,
  per_token=False,
  spread=0.25,
  **knobs,
):
  """A third of the tokens is outside the clip; padding holds NaN and inf.

  The first row's mask is all ones, the last of several all zeros.
  """
  rng = np.random.default_rng(sum(size))
  old, moved, near = rng.normal(size=(3, *size))
  logprob = old - 2 + spread * moved
  reference = old - 2 + 2 * spread * near
  counts = rng.random(size) < 0.7
  counts[-1], counts[0] = False, True
  junk = np.where(rng.random(size) < 0.5, np.nan, np.inf)
  arrays = [np.where(counts, x, junk) for x in (logprob, old - 2, reference)]
  advantages = rng.normal(size=size if per_token else size[:1])
  if per_token:
    advantages = np.where(counts, advantages, junk)
  logprob, old, reference, advantages = (
    np.asarray(jnp.asarray(x, dtype)) for x in (*arrays, advantages)
  )
  if ref:
    knobs = {"beta": 0.1} | knobs

  def function(impl, logprob, old, advantages):
    sums = policy_loss.policy_loss_sums(
      logprob,
      old,
      jnp.asarray(reference, logprob.dtype) if ref else None,
      advantages,
      jnp.asarray(counts),
      impl=impl,
      **(_CLIP | knobs),
    )
    return tuple(sums)

  return op_cases.Problem(function, (logprob, old, advantages))


OP = op_cases.Op(
  name="policy_loss",
  impls=("xla", "interpret"),
  problem=problem,
  cases={
    # One token near the reference: nothing hides the digits that its KL, a
    # small difference, loses.
    "one": {"size": (1, 1), "spread": 4.0, "kl": "exact"},
    "ragged": {"size": (129, 5), "dual_clip": 1.5},
    "wide": {"size": (5, 1200), "kl": "ratio_low_var_kl"},
    "tall": {"size": (300, 129), "per_token": True, "ref": False},
  },
)
