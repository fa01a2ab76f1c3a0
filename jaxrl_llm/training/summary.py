"""What the samples of a step say before any training: numbers and texts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm import types
from jaxrl_llm.rewards import pool as pools
from jaxrl_llm.rollout import collect


def score(pool, samples: collect.Samples):
  """Rewards of all completions, in the pool's processes."""
  group = samples.group_size
  prompts = [text for text in samples.prompt_texts for _ in range(group)]
  answers = [p.answer for p in samples.problems for _ in range(group)]
  return pool.score(prompts, samples.texts, answers)


def with_components(
  rollout: types.Rollout,
  components: Mapping[str, np.ndarray],
  pool: pools.RewardPool,
) -> types.Rollout:
  """Hands each reward to the method, not only their sum.

  Args:
    rollout: of N rows.
    components: {name: [N]}, as scored; NaN where one does not apply.
    pool: says which of them are the K rewards, and their factors.

  Returns:
    The rollout with extras reward_components and reward_weights, [N, K]; the
    weights are the same in every row.
  """
  parts = np.stack([components[label] for label in pool.labels], axis=1)
  factors = np.broadcast_to(np.float32(pool.weights), parts.shape)
  extras = {
    "reward_components": parts.astype(np.float32),
    "reward_weights": np.ascontiguousarray(factors),
  }
  return rollout.replace(extras=rollout.extras | extras)


def sample_metrics(samples: collect.Samples, scored) -> dict[str, float]:
  """What the texts and rewards of a step say, before any training."""
  rewards = np.asarray(scored.rewards, np.float64)
  scorable = np.isfinite(rewards)
  known = rewards[scorable] if scorable.any() else np.zeros(1)
  # A completion without siblings is compared with the batch.
  alone = samples.group_size == 1
  groups = rewards.reshape(-1, rewards.size if alone else samples.group_size)
  uniform = [len(set(group[np.isfinite(group)])) < 2 for group in groups]
  out = samples.generation
  lengths = out.mask.sum(axis=1)
  finished = out.finish_reason == types.FINISH_STOP
  return {
    "reward": float(known.mean()),
    "reward_std": float(known.std()),
    "length": float(lengths.mean()),
    "length_max": float(lengths.max()),
    "truncated": float(1 - finished.mean()),
    "zero_variance": float(np.mean(uniform)),
    "unscorable": float(1 - scorable.mean()),
    **_checksum(out),
    **{f"failures/{k}": float(v) for k, v in scored.failures.items()},
    **{
      f"reward/{name}": float(np.nanmean(values))
      for name, values in scored.components.items()
      if np.isfinite(values).any()
    },
  }


def _checksum(generation) -> dict[str, float]:
  if generation.checksum is None:
    return {}
  return {"sync/checksum_sampler": float(generation.checksum[0])}


def sample_rows(
  samples: collect.Samples, scored, count: int
) -> list[dict[str, Any]]:
  """The first completions of `count` different prompts, for a person."""
  rows = []
  group = samples.group_size
  for index, problem in enumerate(samples.problems[:count]):
    row = index * group
    reward = float(scored.rewards[row])
    rows.append(
      {
        "id": problem.id,
        "prompt": samples.prompt_texts[index],
        "completion": samples.texts[row],
        "answer": problem.answer,
        "reward": reward if np.isfinite(reward) else None,
      }
    )
  return rows
