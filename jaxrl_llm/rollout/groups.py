"""Groups of scored samples: taken out, joined, and kept over a checkpoint.

Host code on numpy arrays. What a plan moves about is whole groups, so that
siblings stay side by side; nothing here decides which.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxrl_llm import types

if TYPE_CHECKING:  # what imports tokenizers is not for those who build methods
  from jaxrl_llm.rollout import collect


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
  """Some groups of G completions with their rewards; at least one.

  Attributes:
    samples: problems, tokens and texts.
    rewards: [N] float32, NaN where a row could not be scored.
    components: {name: [N] float32} before weighting; the rewards come first.
    version: [groups] int64, steps that the policy which sampled each had been
      trained.
    weights: [N] float32, 0 for rows that must not be learnt from.
    extras: {name: [N, ...]} for Rollout.extras.
  """

  samples: collect.Samples
  rewards: np.ndarray
  components: dict[str, np.ndarray]
  version: np.ndarray
  weights: np.ndarray
  extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    """How many groups."""
    return len(self.version)

  @property
  def group_size(self) -> int:
    """G."""
    return len(self.rewards) // len(self.version)

  def rollout(self) -> types.Rollout:
    """For the train step; an unscorable row gets weight 0."""
    out = self.samples.rollout(self.rewards)
    return out.replace(
      weights=out.weights * self.weights, extras=out.extras | self.extras
    )

  def replace(self, **changes: Any) -> Groups:
    """A copy with other values of some fields."""
    return dataclasses.replace(self, **changes)


def fresh(samples: collect.Samples, scored: Any, *, version: int) -> Groups:
  """Groups as they were sampled and scored.

  Args:
    samples: of the collector.
    scored: rewards.scored.Scored of all rows.
    version: steps that the policy had been trained.
  """
  return Groups(
    samples=samples,
    rewards=scored.rewards,
    components=scored.components,
    version=np.full(len(samples.problems), version, np.int64),
    weights=np.ones(len(scored.rewards), np.float32),
  )


def take(groups: Groups, indices: Sequence[int]) -> Groups | None:
  """The groups of these indices in this order; None for no index."""
  index = np.asarray(indices, np.int64)
  if not index.size:
    return None
  size = groups.group_size
  rows = (index[:, None] * size + np.arange(size)).ravel()
  old = groups.samples
  samples = dataclasses.replace(
    old,
    problems=[old.problems[i] for i in index],
    prompts=old.prompts[index],
    prompt_mask=old.prompt_mask[index],
    generation=jax.tree.map(lambda x: x[rows], old.generation),
    prompt_texts=[old.prompt_texts[i] for i in index],
    texts=[old.texts[i] for i in rows],
  )
  return Groups(
    samples=samples,
    rewards=groups.rewards[rows],
    components={k: v[rows] for k, v in groups.components.items()},
    version=groups.version[index],
    weights=groups.weights[rows],
    extras={k: v[rows] for k, v in groups.extras.items()},
  )


def join(parts: Sequence[Groups | None]) -> Groups | None:
  """All groups of several, in order; None for none.

  Raises:
    ValueError: completions of different lengths or group sizes, as when a run
      was resumed with others than it began with.
  """
  parts = [part for part in parts if part is not None]
  if len(parts) < 2:
    return parts[0] if parts else None
  _check_shapes(parts)
  names = list(dict.fromkeys(k for part in parts for k in part.components))
  return Groups(
    samples=join_samples([part.samples for part in parts]),
    rewards=np.concatenate([part.rewards for part in parts]),
    components={
      name: np.concatenate([_component(part, name) for part in parts])
      for name in names
    },
    version=np.concatenate([part.version for part in parts]),
    weights=np.concatenate([part.weights for part in parts]),
    extras={
      k: np.concatenate([part.extras[k] for part in parts])
      for k in parts[0].extras
    },
  )


def join_samples(parts: Sequence[collect.Samples]) -> collect.Samples:
  """All samples of several rounds, in order; at least one round."""
  if len(parts) == 1:
    return parts[0]

  def rows(*arrays):
    return np.concatenate(arrays)

  return dataclasses.replace(
    parts[0],
    problems=[p for part in parts for p in part.problems],
    prompts=rows(*(part.prompts for part in parts)),
    prompt_mask=rows(*(part.prompt_mask for part in parts)),
    generation=jax.tree.map(rows, *(part.generation for part in parts)),
    prompt_texts=[text for part in parts for text in part.prompt_texts],
    texts=[text for part in parts for text in part.texts],
  )


def pack(groups: Groups | None) -> dict[str, Any] | None:
  """As JSON values and numpy arrays, for a checkpoint."""
  if groups is None:
    return None
  samples = groups.samples
  return {
    "problems": [dataclasses.asdict(p) for p in samples.problems],
    "prompt_texts": list(samples.prompt_texts),
    "texts": list(samples.texts),
    "prompts": samples.prompts,
    "prompt_mask": samples.prompt_mask,
    "generation": dataclasses.asdict(samples.generation),
    "rewards": groups.rewards,
    "components": dict(groups.components),
    "version": groups.version,
    "weights": groups.weights,
    "extras": dict(groups.extras),
  }


def unpack(state: dict[str, Any] | None) -> Groups | None:
  """What pack was given."""
  from jaxrl_llm.data import sources
  from jaxrl_llm.rollout import collect, engine

  if state is None:
    return None
  samples = collect.Samples(
    problems=[sources.Problem(**fields) for fields in state["problems"]],
    prompts=state["prompts"],
    prompt_mask=state["prompt_mask"],
    generation=engine.Generation(**state["generation"]),
    prompt_texts=state["prompt_texts"],
    texts=state["texts"],
  )
  names = ("rewards", "components", "version", "weights", "extras")
  return Groups(samples=samples, **{name: state[name] for name in names})


def _component(part: Groups, name: str) -> np.ndarray:
  """A component's values; NaN where no row of the part has it."""
  missing = np.full_like(part.rewards, np.nan)
  return part.components.get(name, missing)


def _check_shapes(parts: Sequence[Groups]) -> None:
  shapes = {
    (part.group_size, part.samples.prompts.shape[1], *_lengths(part))
    for part in parts
  }
  if len(shapes) > 1:
    raise ValueError(
      "groups of one batch must have one group size, prompt length and"
      f" completion length, got {sorted(shapes)}; resume with the run's own"
      " config."
    )


def _lengths(part: Groups) -> tuple[int, ...]:
  return part.samples.generation.mask.shape[1:]
