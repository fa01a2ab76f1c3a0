"""Credit from how many of a group succeed: from expected reward to likelihood.

Outcomes are right or wrong. The weight of a success depends on the number of
successes in its group alone, and is such that the expectation over groups is
known exactly: no division by a deviation, no limit of large groups.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group

BASELINES = ("loo", "score", "score_drop", "none")
# Where q is looked for.
GRID = tuple(0.1 * step for step in range(31))


def success_weight(
  successes: Int[Array, "..."],
  rows: Int[Array, "..."],
  *,
  group_size: int,
  q: float | Float[Array, ""],
) -> Float[Array, "..."]:
  """What a success counts in a group of n completions with K of them.

    beta(K) = Gamma(n + q) Gamma(K) / (Gamma(n) Gamma(K + q))
            = prod_{K <= j < n} (1 + q / j)

  1 for q = 0 and n / K for q = 1; falls with K for q > 0; exactly 1 at K = n.

  Args:
    successes: K, in [1, n]; 0 is taken as 1.
    rows: n, in [0, G].
    group_size: G, the largest n.
    q: 0 or more.
  """
  steps = jnp.log1p(q / jnp.arange(1.0, group_size))
  sums = jnp.concatenate([jnp.zeros(2, steps.dtype), jnp.cumsum(steps)])
  return jnp.exp(sums[rows] - sums[successes])


def success_counted(
  successes: Bool[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  q: float | Float[Array, ""] = 1.0,
  baseline: str = "loo",
) -> Float[Array, "N"]:
  """Credit whose policy gradient is unbiased for a known objective (RL2ML).

    none        a_i = r_i beta(K)
    score       a_i = r_i beta(K) - 1
    score_drop  the same, 0 in a group without success
    loo         a_i = (r_i - K_-i / (n - 1)) beta(K_-i + 1),  K_-i = K - r_i

  with n the rows of the group that count, K its successes. In expectation
  (1/n) sum_i a_i grad log pi(y_i) is slope(p) grad p, but for score_drop:
  (slope(p) - (1 - p)^(n-1)) grad p.

  q = 0 with loo is leave_one_out. A row without siblings has no baseline in
  loo: it gets that of none.

  Args:
    successes: r, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    q: 0 or more; see slope.
    baseline: one of BASELINES.

  Returns:
    Advantages, dimensionless; loo and score_drop give exactly 0 where all of
    a group succeed or none.

  Raises:
    ValueError: if baseline is not one of them.

  References:
    RL2ML, arXiv:2605.30154, from its abstract; the weights are derived.
  """
  check_baseline(baseline)
  chex.assert_rank(successes, 1)
  chex.assert_is_divisible(successes.shape[0], group_size)
  counted = group.counted_rows(weights, successes).reshape(-1, group_size)
  won = successes.reshape(-1, group_size) & counted
  rows = counted.sum(axis=1, keepdims=True)
  total = won.sum(axis=1, keepdims=True)
  knobs = {"group_size": group_size, "q": q}
  if baseline == "loo":
    others = total - won
    siblings = jnp.maximum(rows - 1, 1)
    # A row that does not count could have as many as all rows beside it.
    known = jnp.minimum(others + 1, rows)
    # In integers: a compiler's reciprocal of n - 1 would leave a rest.
    lead = (won * siblings - others) / siblings
    credit = lead * success_weight(known, rows, **knobs)
  else:
    credit = won * success_weight(total, rows, **knobs)
    credit -= 0.0 if baseline == "none" else 1.0
  silent = (total == 0) & (baseline == "score_drop")
  return jnp.where(counted & ~silent, credit, 0.0).reshape(-1)


def slope(
  rates: Float[Array, "..."], *, group_size: int, q: float | Float[Array, ""]
) -> Float[Array, "..."]:
  """How much the objective rises with a prompt's rate of success.

    dJ/dp = sum_{k < G} c_k (1 - p)^k,  c_0 = 1,  c_k = c_{k-1} (q + k - 1) / k

  1 for q = 0 (expected reward), (1 - (1 - p)^G) / p for q = 1 (log p, expanded
  to order G), p^-q as G grows.

  Args:
    rates: p, in [0, 1].
    group_size: G.
    q: 0 or more.

  References:
    arXiv:2605.30154, as read by us.
  """
  k = jnp.arange(1.0, group_size)
  powers = jnp.concatenate([jnp.ones(1, k.dtype), (q + k - 1) / k])
  coefs = jnp.cumprod(powers)
  return jnp.polyval(coefs[::-1], 1.0 - rates)


def gradient_moments(
  rates: Float[Array, "B"],
  *,
  group_size: int,
  q: float | Float[Array, ""],
  baseline: str = "loo",
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
  """Mean and second moment of a group's estimate of dJ/dp, exactly.

    g = (1/G) sum_i a_i d log Bernoulli(r_i; p) / dp

  summed over the G + 1 numbers of successes with their probabilities.

  Args:
    rates: p, in (0, 1).
    group_size: G.
    q: 0 or more.
    baseline: one of BASELINES.

  Returns:
    E g, which is slope(p) for an unbiased baseline, and E g^2.
  """
  counts = jnp.arange(group_size + 1)
  won = jnp.arange(group_size)[None, :] < counts[:, None]
  credit = success_counted(
    won.reshape(-1), group_size=group_size, q=q, baseline=baseline
  ).reshape(won.shape)
  up = jnp.where(won, credit, 0.0).mean(axis=1)[None, :]
  down = jnp.where(won, 0.0, credit).mean(axis=1)[None, :]
  p = rates[:, None]
  estimate = up / p - down / (1.0 - p)
  chance = jax.scipy.stats.binom.pmf(counts[None, :], group_size, p)
  return (chance * estimate).sum(axis=1), (chance * estimate**2).sum(axis=1)


def success_rates(
  successes: Bool[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "B"]:
  """Share of successes among the rows of each group that count; 0 of none.

  Args:
    successes: groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
  """
  counted = group.counted_rows(weights, successes).reshape(-1, group_size)
  won = successes.reshape(-1, group_size) & counted
  return won.sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)


def choose_q(
  rates: Float[Array, "B"],
  *,
  group_size: int,
  baseline: str = "loo",
  pass_at: int = 1,
) -> Float[Array, ""]:
  """The q whose steps raise a metric most for their noise (our reading).

    SNR(q) = (sum_x M'(p_x) s_x E g_x)^2 / sum_x s_x E g_x^2
    M(p) = 1 - (1 - p)^k,  s = p (1 - p)

  over GRID, with g of gradient_moments and s the square of grad p where scores
  have unit variance. Prompts at 0 or 1 have no say: nothing is known of their
  slope.

  Args:
    rates: p, share of successes of each prompt, in [0, 1].
    group_size: G.
    baseline: one of BASELINES.
    pass_at: k of the metric pass@k; 1 is mean accuracy.
  """
  inside = (rates > 0) & (rates < 1)
  p = jnp.where(inside, rates, 0.5)
  share = jnp.where(inside, p * (1.0 - p), 0.0)
  gain = pass_at * (1.0 - p) ** (pass_at - 1) * share

  def ratio(q):
    mean, square = gradient_moments(
      p, group_size=group_size, q=q, baseline=baseline
    )
    noise = (share * square).sum()
    return (gain * mean).sum() ** 2 / jnp.where(noise > 0, noise, 1.0)

  grid = jnp.asarray(GRID)
  return grid[jnp.argmax(jax.vmap(ratio)(grid))]


def check_q(q: float) -> None:
  """Raises ValueError unless q is 0 or more and finite."""
  if not 0 <= q < float("inf"):
    raise ValueError(f"q must be 0 or more and finite, got {q}.")


def check_baseline(baseline: str) -> None:
  """Raises ValueError unless it is one of BASELINES."""
  if baseline not in BASELINES:
    raise ValueError(
      f"baseline must be one of {', '.join(BASELINES)}; got {baseline!r}."
    )
