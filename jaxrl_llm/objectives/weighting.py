"""How much each token counts. A loss is sum(weights * token_loss), always.

Weights are made once, from the whole batch, before it is cut into
micro-batches or shards: sums of parts are then exactly the whole. A row of
weight 0 leaves every denominator. A row that counts but has no tokens (an
empty row) adds nothing to a sum; `count_empty_rows` says whether it is among
the N rows that the sum is divided by (TRL: yes, the default; verl: no).

A part of a batch may be weighed as part of the whole: `tokens` or `rows` then
is the whole's count, and the parts' losses add up. (verl multiplies such a
loss by dp_size because its gradients are averaged, not added, afterwards.)
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# A count of the whole batch, known or not.
Count = float | Float[Array, ""] | Int[Array, ""] | None


def token_mean(
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"],
  *,
  tokens: Count = None,
) -> Float[Array, "N T"]:
  """Every token counts the same, so long answers count more (DAPO).

    w_it = m_it v_i / sum(m v)

  Args:
    mask: true on the policy's own tokens (m).
    weights: of the rows (v).
    tokens: sum(m v) of the whole batch; None when this is it.

  Returns:
    Weights that sum to 1, or all 0 when nothing counts.

  References:
    Yu et al. 2025, arXiv:2503.14476, eq. 8.
  """
  counted = _masked(mask, weights)
  return counted / _or_one(counted.sum() if tokens is None else tokens)


def token_sum(
  mask: Bool[Array, "N T"], weights: Float[Array, "N"]
) -> Float[Array, "N T"]:
  """No mean at all: the loss grows with the batch (verl token-sum).

    w_it = m_it v_i

  Args:
    mask: true on the policy's own tokens (m).
    weights: of the rows (v).

  Returns:
    Weights that sum to the number of tokens that count.
  """
  return _masked(mask, weights)


def sequence_mean(
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"],
  *,
  count_empty_rows: bool = True,
  rows: Count = None,
) -> Float[Array, "N T"]:
  """Every sequence counts the same, whatever its length (GRPO).

    w_it = m_it v_i / (n_i sum(v)),  n_i = sum_t m_it

  Args:
    mask: true on the policy's own tokens (m).
    weights: of the rows (v).
    count_empty_rows: whether rows without tokens are in sum(v).
    rows: sum(v) of the whole batch; None when this is it.

  Returns:
    Weights that sum to 1 when no counted row is empty.

  References:
    Shao et al. 2024, arXiv:2402.03300, eq. 3.
  """
  lengths = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
  rows = _rows(mask, weights, count_empty_rows, rows)
  return _masked(mask, weights) / lengths / rows


def sequence_sum(
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"],
  *,
  count_empty_rows: bool = True,
  rows: Count = None,
) -> Float[Array, "N T"]:
  """The mean over sequences of the sum over their tokens (LUSPO, PPO's return).

    w_it = m_it v_i / sum(v)

  Args:
    mask: true on the policy's own tokens (m).
    weights: of the rows (v).
    count_empty_rows: whether rows without tokens are in sum(v).
    rows: sum(v) of the whole batch; None when this is it.

  Returns:
    Weights that sum to the mean length.

  References:
    arXiv:2602.05261; verl seq-mean-token-sum.
  """
  return _masked(mask, weights) / _rows(mask, weights, count_empty_rows, rows)


def fixed_length(
  mask: Bool[Array, "N T"],
  weights: Float[Array, "N"],
  *,
  length: int | None = None,
  count_empty_rows: bool = True,
  rows: Count = None,
) -> Float[Array, "N T"]:
  """A token's weight depends on no length but a constant (Dr. GRPO).

    w_it = m_it v_i / (L sum(v))

  Args:
    mask: true on the policy's own tokens (m).
    weights: of the rows (v).
    length: L, tokens; None takes T, the longest a completion can be.
    count_empty_rows: whether rows without tokens are in sum(v).
    rows: sum(v) of the whole batch; None when this is it.

  Returns:
    Weights that sum to the mean length over L.

  References:
    Liu et al. 2025, arXiv:2503.20783.
  """
  length = mask.shape[1] if length is None else length
  rows = _rows(mask, weights, count_empty_rows, rows)
  return _masked(mask, weights) / length / rows


def _masked(mask, weights) -> Float[Array, "N T"]:
  chex.assert_rank([mask, weights], [2, 1])
  return jnp.where(mask, weights[:, None], 0.0)


def _rows(mask, weights, count_empty_rows, rows) -> Float[Array, ""]:
  """How many rows the sum is divided by; 1 when none counts."""
  if rows is not None:
    return _or_one(rows)
  if not count_empty_rows:
    weights = jnp.where(mask.any(axis=1), weights, 0.0)
  return _or_one(weights.sum())


def _or_one(total) -> Float[Array, ""]:
  total = jnp.asarray(total)
  return jnp.where(total > 0, total, 1.0)
