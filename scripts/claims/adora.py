"""ADORA: which prompts it weighs more, and what becomes of their length."""

import claims_frame as frame
import claims_tasks
import compare_runs as runs
import numpy as np

from jaxrl_llm import methods, types
from jaxrl_llm.advantages import length_advantage

CLAIM = (
  "Weight goes to hard prompts whose longest success is longer than the average"
  " failure; completions grow there, and more than under GRPO."
)
SECONDS = 60
# Kinds 0 and 1 are hard: the token at this place must be the target, and few
# get there. For the others the first must be.
PLACE, HARD = 4, 2


def check(seeds: int) -> frame.Finding:
  """ADORA and GRPO from one taught model, whose hard answers are rare."""
  setting = runs.Setting(seeds=seeds, steps=40, epochs=1)
  trial = claims_tasks.Trial(
    claims_tasks.Task(rewards=_rewards, examples=_examples), setting
  )
  config = methods.Adora()
  plain = methods.Grpo(beta=config.beta, kl=config.kl, eps=config.eps)
  found = {
    "ADORA": trial.train(config, keep=True).rollouts,
    "GRPO": trial.train(plain, keep=True).rollouts,
  }
  length = {label: _lengths(kept) for label, kept in found.items()}
  share = {
    label: _amplified(found["ADORA"], setting.group_size, hard)
    for label, hard in (("hard", True), ("easy", False))
  }
  grown = {label: own[:, 5:25].mean(axis=1) for label, own in length.items()}
  falls_there = frame.differs(share["hard"], share["easy"])
  grows_more = frame.differs(grown["ADORA"], grown["GRPO"])
  verdicts = (falls_there, grows_more)
  shows = None if None in verdicts else all(verdicts)
  first = length["ADORA"][:, :2].mean(axis=1)
  return frame.Finding(
    shows=False if False in verdicts else shows,
    text=(
      f"Of the mixed groups of hard prompts {frame.band(share['hard'])} were"
      f" amplified, of easy ones {frame.band(share['easy'])}. Tokens on hard"
      f" prompts: {frame.band(first, 2)} at first, over steps 5 to 25"
      f" {frame.band(grown['ADORA'], 2)} with ADORA and"
      f" {frame.band(grown['GRPO'], 2)} with GRPO."
    ),
    rows=[
      {
        "": label,
        "tokens, steps 5 to 25": frame.band(grown[label], 2),
        "tokens, last 5": frame.band(own[:, -5:].mean(axis=1), 2),
      }
      for label, own in length.items()
    ],
    curves=length,
    axes=("step", "tokens on hard prompts"),
  )


def _rewards(kinds, hidden, completions, mask):
  del hidden
  target = claims_tasks.V - 1 - kinds
  place = np.where(kinds < HARD, PLACE, 0)
  rows = np.arange(len(kinds))
  return (completions[rows, place] == target) & mask[rows, place]


def _examples(rng, kinds):
  """Any length, mostly short; right in two of three where there is a place."""
  rows = rng.integers(1, claims_tasks.V, (len(kinds), claims_tasks.T))
  place = np.where(kinds < HARD, PLACE, 0)
  right = rng.random(len(kinds)) < 2 / 3
  index = np.arange(len(kinds))
  said = np.where(right, claims_tasks.V - 1 - kinds, rows[index, place])
  rows[index, place] = said
  stop = rng.random(rows.shape) < 0.3
  rows[:, 1:][stop[:, 1:]] = claims_tasks.STOP
  return rows


def _hard(rollout) -> np.ndarray:
  """[seeds, N]"""
  return rollout.prompts[:, :, 0] - 1 < HARD


def _lengths(kept) -> np.ndarray:
  """[seeds, steps] mean tokens of completions of hard prompts."""
  return np.stack(
    [
      np.where(_hard(one), one.mask.sum(axis=2), 0).sum(axis=1)
      / np.maximum(_hard(one).sum(axis=1), 1)
      for one in kept
    ],
    axis=1,
  )


def _amplified(kept, size: int, hard: bool) -> np.ndarray:
  """[seeds] share of mixed groups of a sort whose weight is above 1."""
  counts = np.zeros((2, kept[0].rewards.shape[0]))
  for one in kept:
    for seed, rewards in enumerate(one.rewards):
      weights = length_advantage.group_weights(
        rewards > 0.5,
        one.mask[seed].sum(axis=1),
        one.finish_reason[seed] == types.FINISH_LENGTH,
        group_size=size,
      )[::size]
      rate = rewards.reshape(-1, size).mean(axis=1)
      sort = (_hard(one)[seed, ::size] == hard) & (rate > 0) & (rate < 1)
      counts[:, seed] += sort.sum(), (sort & (np.asarray(weights) > 1)).sum()
  return counts[1] / np.maximum(counts[0], 1)
