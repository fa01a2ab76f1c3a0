"""A bonus from the course of the effective rank, against its running mean.

    d_m   = clip((x_m - b_m) / (|b_m| + 1e-8), -5, 5),  m of ERA, ERV, ER
    tau   = sigmoid(gain d_ERA)
    w     = tau explore + (1 - tau) exploit
    Phi   = lam sum_m w_m tanh(d_m)
    bonus = min(relu(Phi), |A| / kappa)

The acceleration says which is wanted: where the rank gains speed, the bonus
goes to its height (the exploration there is), else to its speed.
"""

from collections.abc import Sequence
from typing import Literal

import chex
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import types
from jaxrl_llm.transforms import off_policy

_EPS, _LARGEST = 1e-8, 5.0
DYNAMICS, SIGNAL = "rank_dynamics", "rank_signal"


@struct.dataclass
class RankState:
  """What rank_guidance remembers."""

  baseline: jax.Array  # [3] float32, b of ERA, ERV, ER
  last: jax.Array  # [3] float32, means of the last batch
  score: jax.Array  # [] float32, decayed mean reward
  count: jax.Array  # [] int32, batches seen that had a counted row


def rank_signal(
  dynamics: Float[Array, "N 3"],
  baseline: Float[Array, "3"],
  *,
  gain: float = 2.0,
  explore: Sequence[float] = (0.0, 0.0, 1.0),
  exploit: Sequence[float] = (0.0, 1.0, 0.0),
) -> Float[Array, "N"]:
  """Phi with lam = 1, see the head of this file.

  Args:
    dynamics: ERA, ERV, ER of each row.
    baseline: b, of the same three.
    gain: g, of the controller.
    explore: w at tau = 1, on ERA, ERV, ER.
    exploit: w at tau = 0.

  Returns:
    In [-1, 1] where the weights sum to 1 and are not negative; no gradient.

  References:
    VERL, arXiv:2509.23808.
  """
  chex.assert_shape([dynamics, baseline], [(None, 3), (3,)])
  d = (dynamics - baseline[None]) / (jnp.abs(baseline)[None] + _EPS)
  d = jnp.clip(d, -_LARGEST, _LARGEST)
  tau = jax.nn.sigmoid(gain * d[:, :1])
  explore, exploit = (jnp.asarray(w, d.dtype)[None] for w in (explore, exploit))
  weights = tau * explore + (1.0 - tau) * exploit
  return jax.lax.stop_gradient((weights * jnp.tanh(d)).sum(axis=1))


def rank_bonus(
  advantages: Float[Array, "N T"],
  signal: Float[Array, "N"],
  *,
  kappa: float = 2.0,
) -> Float[Array, "N T"]:
  """What is added to the credit: min(relu(Phi), |A| / kappa).

  Args:
    advantages: A, of the base method; one below 0 is softened too.
    signal: Phi, one a row.
    kappa: at least 1; above it no sign of A changes.

  Returns:
    In [0, |A| / kappa], no gradient.

  References:
    VERL, arXiv:2509.23808.
  """
  chex.assert_rank([advantages, signal], [2, 1])
  bound = jnp.abs(advantages) / kappa
  positive = jnp.maximum(signal, 0.0)[:, None]
  return jax.lax.stop_gradient(jnp.minimum(positive, bound))


def next_mean(mean: Array, value: Array, *, rho: float) -> Array:
  """The mean with a share rho of the new value: (1 - rho) mean + rho value."""
  return (1.0 - rho) * mean + rho * value


def rank_guidance(
  *,
  gain: float = 2.0,
  rho: float = 0.3,
  lam: float = 1.0,
  dynamic: bool = False,
  explore: Sequence[float] = (0.0, 0.0, 1.0),
  exploit: Sequence[float] = (0.0, 1.0, 0.0),
  start: Literal["zero", "first"] = "zero",
) -> types.RolloutTransform:
  """Writes extras["rank_signal"] [N] from extras["rank_dynamics"] [N, 3].

  The first batch gets no bonus. Each later one is measured against b; after it
  b <- (1 - rho) b + rho (means of the batch before). A batch in which no row
  counts changes nothing.

  Args:
    gain: g.
    rho: share of the newest means in b, (0, 1].
    lam: multiplies Phi.
    dynamic: multiplies it by 1 - (P + 1) / 2 too; P, from 0, is the mean reward
      of the batches before, decayed as b is. For rewards in [-1, 1].
    explore: weights at tau = 1.
    exploit: weights at tau = 0.
    start: "zero" starts b at 0, so that in the second batch every deviation is
      at its bound; "first" at the means of the first batch.

  Returns:
    A transform with state RankState.

  Raises:
    ValueError: for numbers that cannot be.

  References:
    VERL, arXiv:2509.23808.
  """
  _check(gain=gain, rho=rho, lam=lam, explore=explore, exploit=exploit)
  if start not in ("zero", "first"):
    raise ValueError(f"start must be zero or first, got {start!r}.")

  def init():
    return RankState(
      baseline=jnp.zeros(3, jnp.float32),
      last=jnp.zeros(3, jnp.float32),
      score=jnp.zeros((), jnp.float32),
      count=jnp.zeros((), jnp.int32),
    )

  def update(rollout, state):
    dynamics, later = rollout.extras[DYNAMICS], state.count > 0
    means, reward, any_row = _means(rollout, dynamics)
    signal = lam * rank_signal(
      dynamics, state.baseline, gain=gain, explore=explore, exploit=exploit
    )
    if dynamic:
      signal *= 1.0 - (state.score + 1.0) / 2.0
    signal = jnp.where(later, signal, 0.0)
    first = means if start == "first" else state.baseline
    new = RankState(
      baseline=jnp.where(
        later, next_mean(state.baseline, state.last, rho=rho), first
      ),
      last=means,
      score=jnp.where(
        later, next_mean(state.score, reward, rho=rho), state.score
      ),
      count=state.count + 1,
    )
    state = jax.tree.map(lambda n, o: jnp.where(any_row, n, o), new, state)
    rollout = rollout.replace(extras=rollout.extras | {SIGNAL: signal})
    names = ("rank_acceleration", "rank_velocity", "effective_rank")
    return off_policy.noted(
      rollout, dict(zip(names, means, strict=True))
    ), state

  return types.RolloutTransform(init, update)


def check_kappa(kappa: float) -> None:
  """Raises ValueError unless kappa is at least 1 and finite."""
  if not 1 <= kappa < float("inf"):
    raise ValueError(
      f"kappa must be at least 1 and finite, got {kappa}: a bonus above |A|"
      " turns the sign of the credit."
    )


def _means(rollout, dynamics):
  """Means of dynamics and rewards over rows that count, and if any does."""
  counted = (rollout.weights > 0) & rollout.mask.any(axis=1)
  rows = jnp.maximum(counted.sum(), 1)
  means = jnp.where(counted[:, None], dynamics, 0.0).sum(axis=0) / rows
  reward = jnp.where(counted, rollout.rewards, 0.0).sum() / rows
  return means, reward, counted.any()


def _check(*, gain, rho, lam, explore, exploit):
  if not 0 < rho <= 1:
    raise ValueError(f"rho must be in (0, 1], got {rho}.")
  for name, value in (("gain", gain), ("lam", lam)):
    if not 0 <= value < float("inf"):
      raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
  for name, weights in (("explore", explore), ("exploit", exploit)):
    if len(weights) != 3 or not all(abs(w) < float("inf") for w in weights):
      raise ValueError(
        f"{name} must have 3 finite weights, of ERA, ERV and ER; got {weights}."
      )
