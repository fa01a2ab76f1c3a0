"""Values of prefixes from their neighbours among a prompt's rollouts (Hista).

A prefix is a set of smoothed hidden states; its value is the mean reward of the
nearest prefixes of the group's rollouts, weighed by 1 / distance. Only the
states of every window-th position are kept, [N, K, D], and the distances of one
row to its group, [K, G, K], are the most that exists at once.

References:
  Hista, arXiv:2605.29782.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import group
from jaxrl_llm.distributed import sharding
from pallas_kernels import group_stats


class Nodes(NamedTuple):
  """Positions of a row whose prefixes have a value, in rising order.

  Attributes:
    positions: [N, M] counted from the prompt's first real token.
    valid: [N, M] true on the first `count` of them.
    count: [N] 0 in a row without tokens, 1 in one with a single token.
  """

  positions: Int[Array, "N M"]
  valid: Bool[Array, "N M"]
  count: Int[Array, "N"]


def lengths(
  prompt_mask: Bool[Array, "N S"], mask: Bool[Array, "N T"]
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
  """Tokens of each prompt, and of each completion up to its last one."""
  size = mask.shape[1]
  last = size - jnp.argmax(mask[:, ::-1], axis=1)
  return prompt_mask.sum(axis=1), jnp.where(mask.any(axis=1), last, 0)


def smoothed_states(
  prompt_hidden: Float[Array, "N S D"],
  token_hidden: Float[Array, "N T D"],
  prompt_mask: Bool[Array, "N S"],
  mask: Bool[Array, "N T"],
  *,
  alpha: float = 0.7,
  window: int = 5,
  debias: bool = True,
) -> Float[Array, "N K D"]:
  """Running means of the states from the first real token on, thinned out.

    e_0 = h_0,  e_k = alpha e_{k-1} + (1 - alpha) h_k
    x_k = e_k / (1 - alpha^{k+1}),  k = 0, window, 2 window, ...

  The divisor is for a mean that starts at 0; this one starts at h_0, so that
  early x_k are up to 1 / (1 - alpha) too long. So has the official code.

  Args:
    prompt_hidden: h of the prompts, left-padded.
    token_hidden: h of the completions.
    prompt_mask: true on the prompts' own tokens.
    mask: true on the policy's own tokens; before the last one, others count as
      tokens too.
    alpha: share of the past, [0, 1).
    window: positions from one kept x to the next.
    debias: False leaves x_k = e_k.

  Returns:
    x, K = ceil((S + T) / window), float32 at least; 0 behind a row's end.
  """
  check_smoothing(alpha=alpha, window=window)
  chex.assert_equal_shape_prefix([prompt_hidden, prompt_mask], 2)
  chex.assert_equal_shape_prefix([token_hidden, mask], 2)
  prompt, own = lengths(prompt_mask, mask)
  joined = jnp.concatenate([prompt_hidden, token_hidden], axis=1)
  total = joined.shape[1]
  place = jnp.arange(total)[None]
  index = (place + (prompt_mask.shape[1] - prompt)[:, None]) % total
  h = jnp.take_along_axis(joined, index[..., None], axis=1)
  here = (place < (prompt + own)[:, None])[..., None]
  h = jnp.where(here, h.astype(jnp.result_type(h, jnp.float32)), 0.0)

  def step(e, h):
    e = alpha * e + (1.0 - alpha) * h
    return e, e

  _, e = jax.lax.scan(step, h[:, 0], h.swapaxes(0, 1))
  x = e.swapaxes(0, 1)[:, ::window]
  if debias:
    power = alpha ** (1.0 + jnp.arange(0, total, window, dtype=x.dtype))
    x = x / (1.0 - power)[None, :, None]
  return jax.lax.stop_gradient(jnp.where(here[:, ::window], x, 0.0))


def state_nodes(
  prompt: Int[Array, "N"],
  own: Int[Array, "N"],
  *,
  min_interval: int = 50,
  length: int,
) -> Nodes:
  """The prompt's end P, the multiples of min_interval behind it, the last.

  Args:
    prompt: P, tokens of each prompt; position P is the completion's first.
    own: n, tokens of each completion; the last is at P + n - 1.
    min_interval: m, positions between nodes.
    length: T, the most that n can be.

  Returns:
    Nodes with M = 2 + ceil((T - 1) / m).
  """
  check_nodes(min_interval=min_interval)
  slots = 1 - (1 - length) // min_interval
  after = (prompt // min_interval + 1) * min_interval
  grid = after[:, None] + min_interval * jnp.arange(slots)[None]
  last = (prompt + own - 1)[:, None]
  positions = jnp.concatenate(
    [prompt[:, None], jnp.minimum(grid, jnp.maximum(last, prompt[:, None]))],
    axis=1,
  )
  before = jnp.concatenate([prompt[:, None], grid[:, :-1]], axis=1)
  valid = jnp.concatenate([own[:, None] > 0, before < last], axis=1)
  return Nodes(positions, valid, valid.sum(axis=1))


def node_distances(
  x: Float[Array, "G K D"],
  sizes: Int[Array, "G M"],
  row: Int[Array, ""] | int,
) -> Float[Array, "M G M"]:
  """How far the prefixes of one row are from those of all rows of its group.

    u >= v:  mean_{i<u} min_{j<v} |U_i - W_j|,  else  mean_{j<v} min_{i<u}

  so the mean is over the longer one. inf to longer prefixes of the row itself:
  they know how it went on.

  Args:
    x: states of the group's rows.
    sizes: u, states of the prefix of each node, from 1 to K.
    row: whose prefixes.

  Returns:
    Distances in units of x; NaN becomes inf.
  """
  chex.assert_rank([x, sizes], [3, 2])
  count, length, _ = x.shape
  apart = _apart(x[row], x.reshape(count * length, -1))
  apart = apart.reshape(length, count, length)
  own = jnp.arange(count)[None, :, None] == row
  # Exactly: the product below leaves the rounding of its terms.
  apart = jnp.where(own & jnp.eye(length, dtype=bool)[:, None], 0.0, apart)
  u, v = sizes[row][:, None, None], sizes[None]
  nearest = jnp.take_along_axis(jax.lax.cummin(apart, axis=2), v - 1, axis=2)
  over_own = jnp.cumsum(nearest, axis=0)[sizes[row] - 1] / u
  nearest = jnp.cumsum(jax.lax.cummin(apart, axis=0), axis=2)[sizes[row] - 1]
  over_other = jnp.take_along_axis(nearest, v - 1, axis=2) / v
  found = jnp.where(u >= v, over_own, over_other)
  return jnp.where(jnp.isnan(found) | own & (v > u), jnp.inf, found)


def neighbour_counts(
  interior: Int[Array, "N"], slots: int, *, max_k: int = 66, min_k: int = 6
) -> Int[Array, "N M"]:
  """k_i = max_k - i ((max_k - min_k) // n) of interior node i of n; i from 0.

  The node in slot 0 is the first, which is not interior: i is slot - 1.
  """
  step = (max_k - min_k) // jnp.maximum(interior, 1)
  return max_k - jnp.maximum(jnp.arange(slots)[None] - 1, 0) * step[:, None]


def nearest_mean(
  distances: Float[Array, "M C"],
  rewards: Float[Array, "C"],
  k: Int[Array, "M"],
  *,
  min_d: float = 5.0,
  otherwise: Float[Array, ""] | float = 0.0,
) -> Float[Array, "M"]:
  """Mean reward of the k nearest, weighed by 1 / max(distance, min_d).

  Of candidates that are equally far at the k-th place each gets an equal share
  of the places left, so that no order of the rows matters.

  Args:
    distances: to each candidate; inf where it is none.
    rewards: of the candidates' rollouts; may hold anything at inf.
    k: how many, at least 1; all candidates where they are fewer.
    min_d: positive.
    otherwise: without any candidate.
  """
  near = jnp.maximum(distances, min_d)
  place = jnp.clip(k, 1, near.shape[1]) - 1
  edge = jnp.take_along_axis(jnp.sort(near, axis=1), place[:, None], axis=1)
  inside, tied = near < edge, near == edge
  left = place[:, None] + 1 - inside.sum(axis=1, keepdims=True)
  share = left / jnp.maximum(tied.sum(axis=1, keepdims=True), 1)
  there = jnp.isfinite(near)
  weights = jnp.where(there, (inside + share * tied) * (min_d / near), 0.0)
  total = weights.sum(axis=1)
  gain = weights * jnp.where(there, rewards[None], 0.0)
  mean = gain.sum(axis=1) / jnp.where(total > 0, total, 1.0)
  return jnp.where(total > 0, mean, otherwise)


def state_values(
  states: Float[Array, "N K D"],
  nodes: Nodes,
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  window: int = 5,
  max_k: int = 66,
  min_k: int = 6,
  min_d: float = 5.0,
  exclude_self: bool = False,
) -> Float[Array, "N M"]:
  """V of each node: the group's mean at the first, the own reward at the last.

  Between them nearest_mean over the nodes of the group's rollouts that count.

  Args:
    states: from smoothed_states.
    nodes: from state_nodes.
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G, must divide N.
    window: of smoothed_states.
    max_k: neighbours of the first interior node.
    min_k: about that of the last one.
    min_d: least distance, in units of the states.
    exclude_self: leaves out the row's own nodes, whose reward is what the value
      should foresee; the official code has them.

  Returns:
    Values within the rewards of the group; 0 on slots that are not valid. Equal
    rewards give values that are exactly equal to them.

  Raises:
    ValueError: if k or min_d cannot be.
  """
  check_neighbours(max_k=max_k, min_k=min_k, min_d=min_d)
  counted = group.counted_rows(weights, rewards)
  table = group_stats.group_moments(rewards, group_size, mask=counted)
  k = neighbour_counts(
    nodes.count - 2, nodes.positions.shape[1], max_k=max_k, min_k=min_k
  )
  sizes = nodes.positions // window + 1
  there = nodes.valid & counted[:, None]
  states = jnp.where(counted[:, None, None], states, 0.0)
  # From the mean: equal rewards are exactly 0 and stay so.
  gain = table.centred.reshape(-1)

  def of_group(arrays):
    x, sizes, k, there, gain = arrays

    def of_row(row):
      apart = node_distances(x, sizes, row)
      mine = jnp.arange(group_size)[None, :, None] == row
      hidden = ~there[None] | (mine & exclude_self)
      apart = jnp.where(hidden, jnp.inf, apart).reshape(len(apart), -1)
      rewards = jnp.broadcast_to(gain[:, None], there.shape).reshape(-1)
      return nearest_mean(apart, rewards, k[row], min_d=min_d)

    return jax.lax.map(of_row, jnp.arange(group_size))

  def of_rows(*rows):
    grouped = [x.reshape(-1, group_size, *x.shape[1:]) for x in rows]
    found = jax.lax.map(of_group, tuple(grouped))
    return found.reshape(-1, *found.shape[2:])

  inner = sharding.by_rows(
    of_rows, states, sizes, k, there, gain, group_size=group_size
  )
  slot = jnp.arange(sizes.shape[1])[None]
  values = jnp.where(slot == 0, 0.0, inner)
  values = jnp.where(slot == nodes.count[:, None] - 1, gain[:, None], values)
  mean = jnp.repeat(table.mean.reshape(-1), group_size)
  return jnp.where(there, values + mean[:, None], 0.0)


def segment_advantages(
  values: Float[Array, "N M"],
  nodes: Nodes,
  prompt: Int[Array, "N"],
  mask: Bool[Array, "N T"],
  *,
  lam: float = 1.0,
  credit_last: bool = True,
) -> Float[Array, "N T"]:
  """What each stretch between two nodes gained, and those after it.

    delta_i = V_{i+1} - V_i,  A_i = delta_i + lam A_{i+1}

  Tokens from node i up to node i + 1 get A_i. At lam = 1 that is R - V_i.

  Args:
    values: of the nodes.
    nodes: from state_nodes.
    prompt: P, tokens of each prompt.
    mask: true on the policy's own tokens.
    lam: in [0, 1].
    credit_last: whether the last token gets its stretch's credit; in the
      official code it gets 0.

  Returns:
    Credit in units of reward; 0 for a completion of one token, which has no
    stretch.
  """
  check_nodes(lam=lam)
  chex.assert_equal_shape([values, nodes.positions])
  follows = nodes.valid[:, 1:]
  delta = jnp.where(follows, values[:, 1:] - values[:, :-1], 0.0)

  def step(later, delta):
    now = delta + lam * later
    return now, now

  zeros = jnp.zeros_like(delta[:, 0])
  _, credit = jax.lax.scan(step, zeros, delta.T, reverse=True)
  place = prompt[:, None] + jnp.arange(mask.shape[1])[None]
  # Slots behind the last node repeat its position.
  find = jax.vmap(lambda x, y: jnp.searchsorted(x, y, side="right"))
  segment = find(nodes.positions, place) - 1
  ends = segment >= nodes.count[:, None] - 1
  segment = jnp.clip(segment, 0, jnp.maximum(nodes.count - 2, 0)[:, None])
  out = jnp.take_along_axis(credit.T, segment, axis=1)
  return jnp.where(mask & (credit_last | ~ends), out, 0.0)


def check_smoothing(*, alpha: float, window: int) -> None:
  """Raises ValueError for what smoothed_states cannot take."""
  if not 0 <= alpha < 1:
    raise ValueError(f"alpha must be in [0, 1), got {alpha}.")
  if window < 1:
    raise ValueError(f"mean_window must be at least 1, got {window}.")


def check_nodes(*, min_interval: int = 1, lam: float = 1.0) -> None:
  """Raises ValueError for what state_nodes and segment_advantages cannot."""
  if min_interval < 1:
    raise ValueError(f"min_interval must be at least 1, got {min_interval}.")
  if not 0 <= lam <= 1:
    raise ValueError(f"lam must be in [0, 1], got {lam}.")


def check_neighbours(*, max_k: int, min_k: int, min_d: float) -> None:
  """Raises ValueError for what state_values cannot take."""
  if not 1 <= min_k <= max_k:
    raise ValueError(
      f"neighbours must have 1 <= min_k <= max_k, got {min_k} and {max_k}."
    )
  if not 0 < min_d < float("inf"):
    raise ValueError(f"min_d must be positive and finite, got {min_d}.")


def _apart(a, b):
  """Distances [n, m] of the rows of a and b, which lie about 0."""
  centre = jnp.where(jnp.isfinite(b), b, 0.0).mean(axis=0, keepdims=True)
  a, b = a - centre, b - centre
  product = jnp.matmul(a, b.T, precision="highest")
  square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None]
  return jnp.sqrt(jnp.maximum(square - 2.0 * product, 0.0))
