"""Small random rollouts and what a scripted policy says about them."""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.advantages import group
from jaxrl_llm.models import mtp

# The fields of Scores that hold an array.
ARRAYS = tuple(
  field.name
  for field in dataclasses.fields(types.Scores)
  if field.metadata.get("pytree_node", True)
)


def make_rollout(
  seed: int = 0,
  *,
  groups: int = 2,
  group_size: int = 4,
  length: int = 6,
  prompt_length: int = 3,
  vocab_size: int = 16,
) -> types.Rollout:
  """N = groups * group_size completions of different lengths, all fields set.

  Args:
    seed: of everything random in it.
    groups: B.
    group_size: G.
    length: T, at least 3; no completion is empty, the first is not full.
    prompt_length: S; the first token of every other prompt is padding.
    vocab_size: V.

  Returns:
    A rollout with 0/1 rewards (every group has both), unit weights and
    ref_logprobs near old_logprobs. Log-probs on padding are 0.
  """
  if group_size < 2 or length < 3:
    raise ValueError(
      f"make_rollout needs group_size >= 2 and length >= 3, got {group_size}"
      f" and {length}."
    )
  rows = groups * group_size
  keys = jax.random.split(jax.random.key(seed), 6)
  lengths = jax.random.randint(keys[0], (rows, 1), 1, length + 1)
  lengths = lengths.at[0].set(length - 2)
  mask = jnp.arange(length)[None, :] < lengths
  old = -jax.random.exponential(keys[1], (rows, length)) - 0.01
  near = old + 0.1 * jax.random.normal(keys[2], (rows, length))
  rewards = jax.random.bernoulli(keys[3], shape=(groups, group_size))
  rewards = rewards.at[:, 0].set(False).at[:, -1].set(True)
  padded = jnp.arange(rows) // group_size % 2 == 1
  return types.Rollout(
    prompts=_repeat(keys[4], groups, group_size, prompt_length, vocab_size),
    prompt_mask=jnp.arange(prompt_length)[None, :] >= padded[:, None],
    completions=jax.random.randint(keys[5], (rows, length), 0, vocab_size),
    mask=mask,
    old_logprobs=jnp.where(mask, old, 0.0),
    ref_logprobs=jnp.where(mask, near, 0.0),
    rewards=rewards.reshape(-1).astype(jnp.float32),
    weights=jnp.ones(rows),
    finish_reason=jnp.where(
      lengths[:, 0] == length, types.FINISH_LENGTH, types.FINISH_STOP
    ),
    group_size=group_size,
  )


def make_ragged_rollout(
  seed: int = 0,
  *,
  shape: tuple[int, int, int, int] = (4, 4, 7, 9),
  fill: float = 1.0,
  holes: bool = False,
  vocab_size: int = 32,
) -> types.Rollout:
  """Host arrays with completions of every length; what is padding is dirty.

  Among the completions are one without a token, one of a single token and one
  as long as can be; in the last group none has more than one, in the first the
  prompt fills its S places.

  Args:
    seed: of everything random in it.
    shape: B, G, S, T.
    fill: share of T that completions reach at most, above 0.
    holes: whether tokens before a completion's last one may be hidden.
    vocab_size: V.

  Returns:
    A rollout with unit weights and random rewards. On padding completions are
    no ids and log-probs are NaN.
  """
  prompts, group, size, length = shape
  rows, longest = prompts * group, round(fill * length)
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, longest + 1, rows)
  lengths[-group:] = np.arange(group) % 2
  lengths[:3] = longest, 1, 0
  mask = np.arange(length)[None] < lengths[:, None]
  if holes:
    mask &= rng.random(mask.shape) < 0.7
  own = np.append(size, rng.integers(1, size + 1, prompts - 1))
  tokens = rng.integers(0, vocab_size, (prompts, size), np.int32)
  prompt_mask = np.arange(size)[None] >= size - own[:, None]
  completions = rng.integers(0, vocab_size, mask.shape, np.int32)
  old = -rng.random(mask.shape, np.float32)
  return types.Rollout(
    prompts=np.repeat(tokens, group, axis=0),
    prompt_mask=np.repeat(prompt_mask, group, axis=0),
    completions=np.where(mask, completions, np.int32(2**31 - 1)),
    mask=mask,
    old_logprobs=np.where(mask, old, np.float32(np.nan)),
    rewards=rng.random(rows, np.float32),
    weights=np.ones(rows, np.float32),
    finish_reason=np.zeros(rows, np.int32),
    group_size=group,
  )


def make_scores(
  rollout: types.Rollout,
  seed: int = 0,
  *,
  scale: float = 0.2,
  vocab_size: int = 16,
) -> types.Scores:
  """Scores of a policy a little away from the one that sampled.

  Args:
    rollout: from make_rollout.
    seed: of the noise.
    scale: deviation of log-ratios in nats; 0 is on-policy.
    vocab_size: V.

  Returns:
    Log-probs, those of a module that says them a token earlier, entropy,
    log-probs of the prompts, KL to a reference and
    collision of such an entropy, values of a critic that is a little wrong
    about the mean reward of make_rollout, 1/2, divergences of an inner layer,
    and states of width 4 at the tokens; those of a prompt are the same for its
    group.
  """
  keys = jax.random.split(jax.random.key(seed), 2)
  noise = scale * jax.random.normal(keys[0], rollout.mask.shape)
  entropy = jax.random.uniform(keys[1], rollout.mask.shape, maxval=2.0)
  error = 0.05 * jnp.sin(1.0 + seed + jnp.arange(rollout.mask.size))
  values = 0.5 + error.reshape(rollout.mask.shape)
  ahead = rollout.old_logprobs - 0.3 + 0.5 * noise + values - 0.5
  prompts = rollout.prompt_mask.shape
  unlikely = -1.5 - jnp.cos(jnp.arange(prompts[0] * prompts[1]))
  seen = rollout.prompt_mask & jnp.roll(rollout.prompt_mask, 1, axis=1)
  seen = seen.at[:, 0].set(False)
  first = jnp.arange(prompts[0]) // rollout.group_size * rollout.group_size
  return types.Scores(
    logprobs=jnp.where(rollout.mask, rollout.old_logprobs + noise, 0.0),
    entropy=jnp.where(rollout.mask, entropy, 0.0),
    values=jnp.where(rollout.mask, values, 0.0),
    mtp_logprobs=jnp.where(mtp.predicted(rollout), ahead, 0.0),
    prompt_logprobs=jnp.where(seen, unlikely.reshape(prompts)[first], 0.0),
    reference_kl=jnp.where(rollout.mask, noise**2, 0.0),
    collision=jnp.where(rollout.mask, jnp.exp(-1.1 * entropy), 0.0),
    vocab_size=vocab_size,
    token_hidden=_states(rollout.mask, jnp.arange(prompts[0])),
    prompt_hidden=_states(rollout.prompt_mask, -1 - first),
    layer_jsd=jnp.where(rollout.mask, 0.5 * values, 0.0),
    attention_jsd=jnp.where(rollout.mask, 0.7 - values, 0.0),
  )


def _states(mask, of_row):
  """[N, L, 4] with a walk of its own for each number of a row."""
  shape = (*mask.shape, 4)
  step = jnp.arange(1.0, shape[1] * 4 + 1).reshape(1, *shape[1:])
  walk = jnp.cumsum(jnp.sin(step * (2.0 + of_row[:, None, None])), axis=1)
  return jnp.where(mask[..., None], walk, 0.0)


def scripted_score(
  needs: frozenset[str] = frozenset(),
) -> Callable[[dict, types.Rollout], types.Scores]:
  """A score function with one parameter a position, for step and method tests.

    logprobs_it = old_logprobs_it + params["shift"]_t
    entropy_it  = params["shift"]_t + 1                  (if needed)

  Args:
    needs: of the method; entropy is None unless named.

  Returns:
    score(params, rollout) with params {"shift": [T]}.
  """

  def score(params, rollout):
    shift: Float[Array, "1 T"] = params["shift"][None, :]
    entropy = jnp.broadcast_to(shift + 1.0, rollout.mask.shape)
    return types.Scores(
      logprobs=jnp.where(rollout.mask, rollout.old_logprobs + shift, 0.0),
      entropy=entropy if "entropy" in needs else None,
    )

  return score


def _greedy_rewards(rollout):
  """As the plan, greedy decoding half way between a prompt's completions."""
  grouped = rollout.rewards.reshape(-1, rollout.group_size)
  counted = rollout.weights.reshape(grouped.shape) > 0
  low = jnp.where(counted, grouped, jnp.inf).min(axis=1)
  high = jnp.where(counted, grouped, -jnp.inf).max(axis=1)
  middle = jnp.where(counted.any(axis=1), 0.5 * (low + high), 0.0)
  return jnp.repeat(middle, rollout.group_size)


def _segment_ends(rollout):
  """Cut behind the first token; the rest is the last segment."""
  mask = rollout.mask
  later = jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
  inner = jnp.arange(mask.shape[1])[None] == 0
  return jnp.where(mask, jnp.where(later, inner, 2), 0).astype(jnp.int32)


def _segment_deltas(rollout):
  """The mean of the group foretells the reward, the first token a third."""
  groups = group.from_group_mean(
    rollout.rewards, rollout.weights, group_size=rollout.group_size
  )
  above = groups.centred.reshape(-1, 1) / 3
  first = jnp.arange(rollout.mask.shape[1])[None] == 0
  ends = _segment_ends(rollout)
  known = rollout.rewards[:, None] - jnp.where(first, 3, 2) * above
  return jnp.where(ends == 2, -known, jnp.where(ends == 1, above, 0.0))


def _tool_calls(rollout):
  """None, one or two, different among siblings."""
  return jnp.arange(rollout.rewards.shape[0], dtype=jnp.int32) % 3


def _longer_prompts(rollout):
  """As the plan, with an instruction of two tokens after each prompt."""
  return jnp.pad(rollout.prompts, ((0, 0), (0, 2)), constant_values=1)


def _longer_masks(rollout):
  return jnp.pad(rollout.prompt_mask, ((0, 0), (0, 2)), constant_values=True)


def _redundant_start(rollout):
  """The best of a group say too much, behind their first token."""
  groups = group.from_group_mean(
    rollout.rewards, rollout.weights, group_size=rollout.group_size
  )
  return jnp.where(groups.centred.reshape(-1) > 0, 1, -1)


def _redundant_end(rollout):
  return jnp.where(_redundant_start(rollout) > 0, rollout.mask.sum(axis=1), -1)


def _sentence_rewards(rollout):
  """Better completions say what is better known, in every other token."""
  groups = group.from_group_mean(
    rollout.rewards, rollout.weights, group_size=rollout.group_size
  )
  odd = jnp.arange(rollout.mask.shape[1])[None] % 2 == 1
  return jnp.where(odd, 0.3 * groups.centred.reshape(-1, 1), 0.0)


def _no_rows(rollout):
  return jnp.zeros(rollout.rewards.shape)


def _first_call(rollout):
  """Two of three rows call code, at one of their first tokens."""
  rows = jnp.arange(rollout.rewards.shape[0])
  return jnp.where(rows % 3 == 0, -1, rows % 5).astype(jnp.int32)


def _answer_ids(rollout):
  """Right ones say 0, wrong ones 1 or 2."""
  wrong = 1 + jnp.arange(rollout.rewards.shape[0]) % 2
  return jnp.where(rollout.rewards > 0, 0, wrong).astype(jnp.int32)


# What plans add to rollouts, by name: rollout -> array.
EXTRAS: dict[str, Callable[[types.Rollout], Array]] = {
  "first_call": _first_call,
  "answer_ids": _answer_ids,
  "greedy_rewards": _greedy_rewards,
  "segment_deltas": _segment_deltas,
  "segment_ends": _segment_ends,
  "n_tools": _tool_calls,
  "negative_prompts": _longer_prompts,
  "negative_prompt_mask": _longer_masks,
  "redundant_end": _redundant_end,
  "redundant_start": _redundant_start,
  "sentence_rewards": _sentence_rewards,
  "stale": _no_rows,
  "verifier_logprob": lambda rollout: rollout.rewards - 2.0,
  "verifier_tokens": lambda rollout: jnp.full(rollout.rewards.shape, 7),
}


def with_extras(
  rollout: types.Rollout, extras: Mapping[str, types.Extra]
) -> types.Rollout:
  """The rollout with arrays of the kind that a method's plan adds.

  Args:
    rollout: from make_rollout; what it has already stays.
    extras: of the plan.

  Raises:
    KeyError: for a name that EXTRAS does not have.
  """
  found = {name: EXTRAS[name](rollout) for name in extras}
  return rollout.replace(extras=found | rollout.extras)


def _repeat(key, groups, group_size, prompt_length, vocab_size):
  prompts = jax.random.randint(key, (groups, prompt_length), 0, vocab_size)
  return jnp.repeat(prompts, group_size, axis=0)
