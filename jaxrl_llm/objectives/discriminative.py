"""Scores of right answers against those of wrong ones (DisCO, DRPO)."""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Report = Literal["formula", "code"]


def mean_logprob(
  logprobs: Float[Array, "N T"], mask: Bool[Array, "N T"]
) -> Float[Array, "N"]:
  """The score of a completion: log-probability a token, in nats.

    s_i = sum_t m_it logprobs_it / max(n_i, 1)

  Args:
    logprobs: of the policy, in nats; may hold anything outside the mask.
    mask: true on the policy's own tokens (m).
  """
  chex.assert_equal_shape([logprobs, mask])
  count = jnp.maximum(mask.sum(axis=1), 1)
  return jnp.where(mask, logprobs, 0.0).sum(axis=1) / count


def against_the_likeliest(
  credit: Float[Array, "N"],
  scores: Float[Array, "N"],
  *,
  group_size: int,
  tau: float = 10.0,
  report: Report = "formula",
) -> tuple[Float[Array, "N"], Float[Array, ""]]:
  """Moves the blame of a prompt to its likeliest wrong answers.

    J = sum_{i right} A_i s_i
        - sum_q m_q tau log(mean_{j wrong in q} exp(s_j / tau))

  with m_q the blame of the group, minus the sum of its negative credit: 1 for
  a whole group of decoupled_credit. Tends to sum_i A_i s_i as tau grows, for
  blame that is equal in a group.

  Args:
    credit: A, groups contiguous; right where positive, wrong where negative,
      0 where neither.
    scores: s, in nats; finite.
    group_size: G; must divide N.
    tau: nats; positive.
    report: J by its formula, or as the authors' code has it, where
      tau Z / sg(Z), which is tau with the same gradient, stands for tau log Z.

  Returns:
    dJ / ds, which sums in a group to what the credit sums to, and J.

  References:
    Li et al. 2025, DRPO, arXiv:2510.04474, section 4.
  """
  chex.assert_equal_shape([credit, scores])
  credit, scores = (x.reshape(-1, group_size) for x in (credit, scores))
  wrong = credit < 0
  blame = -jnp.where(wrong, credit, 0.0).sum(axis=1, keepdims=True)
  highest = jnp.where(wrong, scores, -jnp.inf).max(axis=1, keepdims=True)
  highest = jnp.where(blame > 0, highest, 0.0)
  powers = jnp.exp(jnp.where(wrong, scores - highest, -jnp.inf) / tau)
  total = powers.sum(axis=1, keepdims=True)
  safe = jnp.where(blame > 0, total, 1.0)
  gradient = jnp.where(wrong, -blame * powers / safe, credit)
  count = jnp.maximum(wrong.sum(axis=1, keepdims=True), 1)
  soft = highest + tau * jnp.log(safe / count)
  if report == "code":
    soft = jnp.full_like(soft, tau)
  right = jnp.where(wrong, 0.0, credit * scores)
  return gradient.reshape(-1), right.sum() - (blame * soft).sum()
