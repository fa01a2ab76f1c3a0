"""What a model is fed of a rollout, and where in its answer is what.

Prompts once a group: with their padding, or, where the rollout brings a
packing, real tokens side by side.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm import types
from jaxrl_llm.models import api, cache
from jaxrl_llm.models import packed as packed_rows


class Fed(NamedTuple):
  """What a model is fed of a rollout, and where in its answer is what.

  M = N T, or less where padding is left out.

  Attributes:
    tokens: [R, L] ids.
    positions: [R, L] rotary positions.
    rows: who attends to whom.
    chosen: [M] tokens that are scored.
    real: [M] which of them are no padding.
    before: [R, L, ...] -> [M, ...], at the token before each of them.
    previous: [R, L, D] -> [R, L, D], at the token before each that is fed;
      anything for a first one.
    later: () -> rows without the first token of each sequence.
    spread: [M, ...] -> [N, T, ...].
    own: [R, L, ...] -> [N, T, ...], at the completion's own tokens.
    prompt: [R, L, ...] -> [N, S, ...].
  """

  tokens: jax.Array
  positions: jax.Array
  rows: api.Cache
  chosen: jax.Array
  real: jax.Array
  before: Callable[[jax.Array], jax.Array]
  previous: Callable[[jax.Array], jax.Array]
  later: Callable[[], api.Cache]
  spread: Callable[[jax.Array], jax.Array]
  own: Callable[[jax.Array], jax.Array] | None = None
  prompt: Callable[[jax.Array], jax.Array] | None = None


def padded(rollout: types.Rollout, *, last: bool = False) -> Fed:
  """Prompts once a group, completions as long as can be.

  Position 0 is predicted by the prompt's last token, position t by completion
  token t - 1.

  Args:
    rollout: its rows are a multiple of its group size.
    last: whether a completion's last token, which predicts none, is fed too;
      `own` needs it.
  """
  group = rollout.group_size
  prompts, prompt_mask = rollout.prompts[::group], rollout.prompt_mask[::group]
  (count, size), (n, length) = prompts.shape, rollout.mask.shape
  fed = length if last else length - 1
  own = jnp.where(rollout.mask[:, :fed], rollout.completions[:, :fed], 0)
  tokens = jnp.concatenate([prompts, own.reshape(count, group * fed)], axis=1)

  def seen(mask):
    if fed == 0:
      return cache.Causal(mask)
    return cache.Grouped(mask, group_size=group, length=fed)

  def later():
    return seen(prompt_mask & jnp.pad(prompt_mask[:, :-1], ((0, 0), (1, 0))))

  def own_states(x):
    return x[:, size:].reshape(n, fed, *x.shape[2:])

  def before(x):
    first = jnp.repeat(x[:, size - 1], group, axis=0)[:, None]
    if length == 1:
      return first[:, 0]
    x = jnp.concatenate([first, own_states(x)[:, : length - 1]], axis=1)
    return x.reshape(-1, *x.shape[2:])

  def previous(x):
    prompt = jnp.pad(x[:, : size - 1], ((0, 0), (1, 0), (0, 0)))
    own = before(x).reshape(n, length, -1)[:, :fed]
    own = own.reshape(count, group * fed, x.shape[2])
    return jnp.concatenate([prompt, own], axis=1)

  rows = seen(prompt_mask)
  return Fed(
    tokens=tokens,
    positions=rows.positions(),
    rows=rows,
    chosen=rollout.completions.reshape(-1),
    real=rollout.mask.reshape(-1),
    before=before,
    previous=previous,
    later=later,
    spread=lambda x: x.reshape(n, length, *x.shape[1:]),
    own=lambda x: _masked(own_states(x), rollout.mask),
    prompt=lambda x: _masked(
      jnp.repeat(x[:, :size], group, axis=0), rollout.prompt_mask
    ),
  )


def packed(rollout: types.Rollout) -> Fed:
  """Real tokens side by side; chosen tokens, and few others, are scored."""
  packing = rollout.packing
  blocks, count = packing.chosen.shape
  index = packing.index.reshape(blocks, -1)

  def before(x):
    x = packed_rows.taken(x, packing.before)
    return x.reshape(blocks * count, *x.shape[2:])

  def spread(x):
    x = packed_rows.taken(x.reshape(blocks, count, *x.shape[1:]), index)
    return _masked(x.reshape(*rollout.mask.shape, *x.shape[2:]), rollout.mask)

  rows = packed_rows.Packed(packing.rows, packing.segments, packing.places)
  return Fed(
    tokens=packing.tokens,
    positions=packing.positions,
    rows=rows,
    chosen=packing.chosen.reshape(-1),
    real=packing.real.reshape(-1),
    before=before,
    previous=rows.before,
    later=rows.later,
    spread=spread,
  )


def _masked(x, mask):
  """x [N, L, ...], 0 outside the mask."""
  return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0)
