"""Reductions over tokens and groups for bench_kernels."""

import functools

import jax
import jax.numpy as jnp
import kernel_case

from pallas_kernels import group_stats, policy_loss, reverse_scan

_ITEMS = 512  # K, items of one prompt that segments are made of


def _table(s: kernel_case.Sizes, dtype="float32"):
  return kernel_case.shape(s.rows, s.length, dtype=dtype)


def reverse_scan_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """y_t = x_t + decay_t y_{t+1}."""

  def step_by_step(decay, x):
    def step(y, column):
      y = column[1] + column[0] * y
      return y, y

    start = jnp.zeros(x.shape[0])
    return jax.lax.scan(step, start, (decay.T, x.T), reverse=True)[1].T

  def associative(decay, x):
    def merge(later, sooner):
      return later[0] * sooner[0], sooner[1] + sooner[0] * later[1]

    return jax.lax.associative_scan(merge, (decay, x), reverse=True, axis=1)[1]

  run = reverse_scan.reverse_scan
  return kernel_case.make(
    "reverse_scan",
    {
      "naive": step_by_step,
      "associative_scan": associative,
      "xla": functools.partial(run, impl="xla"),
    },
    (_table(s), _table(s)),
    flops=0.0,
    nbytes=12.0 * s.rows * s.length,
    kernels={"pallas": functools.partial(run, impl="pallas")},
  )


def gae_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """Advantages and returns of a critic."""

  def naive(rewards, values, mask):
    def step(carry, column):
      reward, value, own = column
      later_value, later = carry
      surprise = reward + 0.99 * later_value - value
      advantage = surprise + 0.99 * 0.95 * later
      here = (
        jnp.where(own, value, later_value),
        jnp.where(own, advantage, later),
      )
      return here, here[1]

    zero = jnp.zeros(rewards.shape[0])
    columns = (rewards.T, values.T, mask.T)
    advantages = jax.lax.scan(step, (zero, zero), columns, reverse=True)[1].T
    return advantages, advantages + values

  run = functools.partial(reverse_scan.gae, gamma=0.99, lam=0.95)
  return kernel_case.make(
    "gae",
    {"naive": naive, "xla": functools.partial(run, impl="xla")},
    (_table(s), _table(s), _table(s, "bool")),
    flops=0.0,
    nbytes=17.0 * s.rows * s.length,
    kernels={"pallas": functools.partial(run, impl="pallas")},
  )


def group_normalize_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """Rewards of groups of 16; the naive form is not exact where all agree."""

  def naive(rewards):
    table = rewards.reshape(-1, 16)
    centred = table - table.mean(axis=1, keepdims=True)
    std = table.std(axis=1, keepdims=True, ddof=1)
    return (centred / (std + 1e-4)).reshape(-1)

  rows = 16 * s.rows
  return kernel_case.make(
    "group_normalize",
    {
      "naive": naive,
      "xla": lambda r: group_stats.group_normalize(r, 16, impl="xla"),
    },
    (kernel_case.shape(rows),),
    flops=0.0,
    nbytes=8.0 * rows,
  )


def segment_normalize_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """Items of each prompt by arbitrary ids; naive scatters over all prompts."""
  prompts = max(s.rows // 16, 1)

  def naive(x, ids):
    offset = jnp.arange(prompts, dtype=ids.dtype)[:, None] * 1000
    flat, which = x.reshape(-1), (ids + offset).reshape(-1)
    sums = functools.partial(
      jax.ops.segment_sum, segment_ids=which, num_segments=1000 * prompts
    )
    count = jnp.maximum(sums(jnp.ones_like(flat)), 1)
    centred = flat - (sums(flat) / count)[which]
    std = jnp.sqrt(sums(centred**2) / count)
    return (centred / (std[which] + 1e-4)).reshape(x.shape)

  shape = prompts, _ITEMS
  return kernel_case.make(
    "segment_normalize",
    {
      "naive": naive,
      "xla": lambda x, ids: group_stats.segment_normalize(
        x, ids, ddof=0, impl="xla"
      ),
    },
    (kernel_case.shape(*shape), kernel_case.shape(*shape, dtype="int32")),
    flops=0.0,
    nbytes=12.0 * prompts * _ITEMS,
  )


def policy_loss_grad_case(s: kernel_case.Sizes) -> kernel_case.Case:
  """The clipped loss with a KL term and its gradient."""

  def naive(logprob, old, ref, advantages, mask):
    ratio = jnp.exp(logprob - old)
    clipped = jnp.clip(ratio, 0.8, 1.28)
    a = advantages[:, None]
    gap = ref - logprob
    token = -jnp.minimum(ratio * a, clipped * a)
    token = token + 0.01 * (jnp.exp(gap) - gap - 1)
    return jnp.where(mask, token, 0).sum(axis=1)

  def run(impl, *args):
    return policy_loss.policy_loss_sums(
      *args, clip_low=0.2, clip_high=0.28, beta=0.01, impl=impl
    ).loss

  def graded(function):
    def loss(logprob, *rest):
      return function(logprob, *rest).sum()

    return jax.value_and_grad(loss)

  table = _table(s)
  rows = kernel_case.shape(s.rows)
  return kernel_case.make(
    "policy_loss_grad",
    {
      "naive": graded(naive),
      "xla": graded(functools.partial(run, "xla")),
    },
    (table, table, table, rows, _table(s, "bool")),
    flops=0.0,
    nbytes=17.0 * s.rows * s.length,
    kernels={"pallas": graded(functools.partial(run, "pallas"))},
  )
