"""The pre-training loss as a policy's objective (AWM)."""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.objectives import surrogates

Form = Literal["exp_first", "sum_first"]


def advantage_weighted_matching(
  log_ratio: Float[Array, "M *shape"],
  advantages: Float[Array, "*shape"],
  *,
  clip: float = 1.0,
  form: Form = "exp_first",
) -> tuple[Float[Array, "*shape"], dict[str, Float[Array, "*shape"]]]:
  """Raises the score S, minus a pre-training loss, where the advantage is.

    rho_m = exp(S_m - sg(S_old_m))
    loss  = mean_m max(-A rho_m, -A clip(rho_m, 1 - clip, 1 + clip))

  "sum_first" takes the mean of S - S_old over the draws before exp; the two are
  one for M = 1. At rho = 1 the loss is -A and its gradient -A dS / d theta:
  with A = 1 that of the pre-training loss. With clip = 1 only rho > 2 at a
  positive A is cut off.

  Args:
    log_ratio: S - S_old in nats, by draw m of what a pre-training loss is
      random in (time and noise), the same for both. An exact log-likelihood
      has one draw.
    advantages: A of each sample; treated as constant.
    clip: half-width of the trust region, in (0, 1].
    form: where the mean over the draws is taken.

  Returns:
    The loss per sample, and where its gradient is cut off, as shares of the
    draws: {"clip_fraction_low", "clip_fraction_high"}.

  References:
    Xue et al. 2025, AWM, arXiv:2509.25050.
  """
  chex.assert_equal_shape([log_ratio[0], advantages])
  if form == "sum_first":
    log_ratio = log_ratio.mean(axis=0, keepdims=True)
  losses, clipped = surrogates.clipped_surrogate(
    log_ratio,
    jnp.broadcast_to(advantages, log_ratio.shape),
    clip_low=clip,
    clip_high=clip,
  )
  clipped = {name: share.mean(axis=0) for name, share in clipped.items()}
  return losses.mean(axis=0), clipped
