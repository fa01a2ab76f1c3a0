"""ADORA: which prompts it weighs more, and what becomes of their length."""

import claims_frame as frame
import claims_runs
import claims_taught
from compare_tasks import STOP, T, V
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
  runs = claims_runs.Runs(seeds, steps=40, epochs=1, evaluations=1)
  start = claims_taught.taught(runs, _examples)
  config = methods.Adora()
  plain = methods.Grpo(beta=config.beta, kl=config.kl, eps=config.eps)
  found = {
    label: runs.train(one, _reward, _seen, params=start).curves
    for label, one in {"ADORA": config, "GRPO": plain}.items()
  }
  length = {
    label: one["tokens"] / np.maximum(one["hard"], 1e-9)
    for label, one in found.items()
  }
  share = {sort: _share(found["ADORA"], sort) for sort in ("hard", "easy")}
  grown = {label: _tokens(one, slice(5, 25)) for label, one in found.items()}
  falls_there = frame.differs(share["hard"], share["easy"])
  grows_more = frame.differs(grown["ADORA"], grown["GRPO"])
  verdicts = (falls_there, grows_more)
  shows = None if None in verdicts else all(verdicts)
  first = _tokens(found["ADORA"], slice(0, 3))
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
        "tokens, last 5": frame.band(_tokens(one, slice(-5, None)), 2),
      }
      for label, one in found.items()
    ],
    curves=length,
    axes=("step", "tokens on hard prompts"),
  )


def _tokens(curves, steps) -> np.ndarray:
  """[seeds] mean length of completions of hard prompts over some steps."""
  tokens, rows = (curves[name][:, steps] for name in ("tokens", "hard"))
  return tokens.sum(axis=1) / rows.sum(axis=1)


def _share(curves, sort) -> np.ndarray:
  """[seeds] share of mixed groups of a sort whose weight was above 1."""
  mixed, amplified = (
    curves[f"{name} {sort}"].sum(axis=1) for name in ("mixed", "amplified")
  )
  return amplified / np.maximum(mixed, 1e-9)


def _place(kinds) -> np.ndarray:
  return np.where(kinds < HARD, PLACE, 0)


def _reward(samples):
  """1 where the token at the prompt's place is the target."""
  rows = np.arange(len(samples.texts))
  place = _place(claims_taught.kinds_of(samples))
  return {"reward": claims_runs.hits(samples)[rows, place]}


def _seen(samples):
  """By completion: of what sort its prompt is, and what became of its group."""
  hard = claims_taught.kinds_of(samples) < HARD
  right = _reward(samples)["reward"]
  lengths, size = claims_runs.lengths(samples), samples.group_size
  weights = length_advantage.group_weights(
    right,
    lengths,
    samples.generation.finish_reason == types.FINISH_LENGTH,
    group_size=size,
  )
  rate = right.reshape(-1, size).mean(axis=1).repeat(size)
  mixed = (rate > 0) & (rate < 1)
  amplified = mixed & (np.asarray(weights) > 1)
  return {
    "hard": hard,
    "tokens": np.where(hard, lengths, 0),
    "mixed hard": mixed & hard,
    "mixed easy": mixed & ~hard,
    "amplified hard": amplified & hard,
    "amplified easy": amplified & ~hard,
  }


def _examples(rng, kinds):
  """Any length, mostly short; right in two of three where there is a place."""
  rows = rng.integers(1, V, (len(kinds), T))
  right = rng.random(len(kinds)) < 2 / 3
  index, place = np.arange(len(kinds)), _place(kinds)
  rows[index, place] = np.where(right, V - 1 - kinds, rows[index, place])
  stop = rng.random(rows.shape) < 0.3
  rows[:, 1:][stop[:, 1:]] = STOP
  return rows
