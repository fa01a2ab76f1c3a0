"""Scores completions in all processes of a run: each scores its share."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from jaxrl_llm.distributed import processes
from jaxrl_llm.rewards import pool as pools
from jaxrl_llm.rewards import scored


class DividedPool:
  """A RewardPool in each process, which score together; all get all results.

  Attributes:
    labels, weights: as in RewardPool.
  """

  def __init__(self, pool: pools.RewardPool):
    """Joins the pools of all processes; this one's is `pool`."""
    self._pool = pool
    self.labels, self.weights = pool.labels, pool.weights

  def score(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[Any],
  ) -> scored.Scored:
    """As RewardPool.score, of the same N rows in every process."""
    if processes.count() == 1:
      return self._pool.score(prompts, completions, answers)

    def share(rows):
      found = self._pool.score(prompts[rows], completions[rows], answers[rows])
      start = f"process {jax.process_index()}, "
      messages = [start + text for text in found.messages]
      return dataclasses.replace(found, messages=messages)

    return scored.join(processes.divided(share, len(completions)))
