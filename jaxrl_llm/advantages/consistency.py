"""Credit between prompts, and how much of it a prompt's answers call for."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.advantages import group
from pallas_kernels import group_stats

BLENDS = (
  "soft_with_zero",
  "only_soft",
  "only_zero",
  "only_forced",
  "soft_with_forced",
  "only_global",
  "no_global",
)


def answer_entropy(
  answers: Int[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
) -> Float[Array, "N"]:
  """Entropy of the final answers of each group.

    H_g = - sum_k p_k log2(p_k + 1e-8),  p_k = share of the group's rows

  Args:
    answers: ids, equal within a group where two answers are.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.

  Returns:
    Bits, in [0, log2 G] but for the 1e-8, equal within a group; 0 where no row
    counts and for a group of one.
  """
  chex.assert_rank(answers, 1)
  chex.assert_is_divisible(answers.shape[0], group_size)
  shape = (-1, group_size)
  counted = group.counted_rows(weights, answers).reshape(shape)
  ids = answers.reshape(shape)
  same = (ids[:, :, None] == ids[:, None, :]) & counted[:, None, :]
  rows = counted.sum(axis=1, keepdims=True)
  share = same.sum(axis=2) / jnp.maximum(rows, 1)
  # The sum over answers, taken over rows: an answer has p_k n of them.
  logs = jnp.where(counted, jnp.log2(share + 1e-8), 0.0)
  entropy = -logs.sum(axis=1, keepdims=True) / jnp.maximum(rows, 1)
  entropy = jnp.where(rows > 1, entropy, 0.0)
  return jnp.broadcast_to(entropy, counted.shape).reshape(-1)


def prompt_rewards(
  rewards: Float[Array, "N"],
  entropy: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  consistency: bool = False,
) -> Float[Array, "N"]:
  """What a prompt earned: the mean of its group, less for divided answers.

    R_g = mean_g (1 - lambda H_g),  lambda = (1 - 1/n) / log2 n

  with n the rows of the group that count; without `consistency` R_g = mean_g.
  Where no two answers are equal the factor is 1/n; for n = 1 it is 1.

  Args:
    rewards: outcome of each completion, groups contiguous.
    entropy: H, bits, of answer_entropy.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    consistency: whether the entropy takes its share.

  Returns:
    In units of reward, equal within a group.
  """
  chex.assert_equal_shape([rewards, entropy])
  counted = group.counted_rows(weights, rewards)
  found = group_stats.group_moments(rewards, group_size, mask=counted)
  mean = found.mean
  if consistency:
    many = jnp.maximum(found.count, 2)
    cost = jnp.where(found.count > 1, (1 - 1 / many) / jnp.log2(many), 0.0)
    mean = mean * (1.0 - cost * entropy.reshape(-1, group_size)[:, :1])
  return jnp.repeat(mean[:, 0], group_size)


def between_prompts(
  prompt_rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  normalize: bool = True,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """Compares a prompt's reward with those of the batch (COPO, global).

    A_i = (R_g(i) - mean_B(R)) / (std_B(R) + eps)

  over the B prompts with a row that counts, each once, std with B - 1.

  Args:
    prompt_rewards: R, equal within a group.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    normalize: False only subtracts the mean.
    eps: added to the standard deviation.

  Returns:
    Advantages, equal within a group but 0 for rows that do not count; exactly
    0 where all prompts earned the same, or there is one.

  References:
    COPO, arXiv:2508.04138, and its code.
  """
  group.check_std(ddof=1, eps=eps)
  counted = group.counted_rows(weights, prompt_rewards)
  present = counted.reshape(-1, group_size).any(axis=1)
  found = group.one_group(prompt_rewards[::group_size], present)
  credit = found.centred[0]
  if normalize:
    credit = credit / (group.std(found, ddof=1)[0, 0] + eps)
  return jnp.where(counted, jnp.repeat(credit, group_size), 0.0)


def within_prompt(
  rewards: Float[Array, "N"],
  weights: Float[Array, "N"] | None = None,
  *,
  group_size: int,
  normalize: bool = True,
  eps: float = 1e-6,
) -> Float[Array, "N"]:
  """GRPO's credit, which for a group of one is the reward (COPO, local).

  Args:
    rewards: outcome of each completion, groups contiguous.
    weights: a row counts where this is positive; None counts all.
    group_size: G; must divide N.
    normalize: False only subtracts the mean of the group.
    eps: added to the standard deviation.
  """
  if group_size > 1 and normalize:
    return group.group_normalized(
      rewards, weights, group_size=group_size, eps=eps
    )
  if group_size > 1:
    return group.group_centred(rewards, weights, group_size=group_size)
  alone = jnp.where(group.counted_rows(weights, rewards), rewards, 0.0)
  return alone / (1.0 + eps) if normalize else alone


def local_share(
  entropy: Float[Array, "N"],
  rewards: Float[Array, "N"],
  local: Float[Array, "N"],
  *,
  blend: str = "soft_with_zero",
  steepness: float = 5.0,
  middle: float = 1.0,
) -> Float[Array, "N"]:
  """How much of a row's loss is by its own group; the rest is between prompts.

    soft   sigmoid(steepness (H - middle))
    zero   1 where the reward is not 0
    forced 1 where the local credit is not 0

  "soft_with_..." is their product, "only_..." one of them; only_global is 0,
  no_global is 1. Answers that agree (H = 0) leave little to compare inside the
  group.

  Args:
    entropy: H, bits.
    rewards: outcome of each completion.
    local: credit within the group.
    blend: one of BLENDS.
    steepness: per bit.
    middle: bits at which the two count the same.

  Returns:
    In [0, 1], without gradient.

  Raises:
    ValueError: if blend is not one of them.
  """
  check_blend(blend)
  chex.assert_equal_shape([entropy, rewards, local])
  share = jnp.ones_like(local)
  if blend == "only_global":
    share = jnp.zeros_like(local)
  if "soft" in blend:
    share = jax.nn.sigmoid(steepness * (entropy - middle))
  if "zero" in blend:
    share = jnp.where(rewards != 0, share, 0.0)
  if "forced" in blend:
    share = jnp.where(local != 0, share, 0.0)
  return jax.lax.stop_gradient(share)


def check_blend(blend: str) -> None:
  """Raises ValueError unless it is one of BLENDS."""
  if blend not in BLENDS:
    raise ValueError(
      f"blend must be one of {', '.join(BLENDS)}; got {blend!r}."
    )
