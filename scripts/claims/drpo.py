"""DRPO: what a price of length does to right answers."""

import zlib

import claims_frame as frame
import claims_runs
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import group

CLAIM = (
  "Completions get shorter at equal accuracy, because a long right answer is"
  " never pushed down, as it is where GRPO's reward has a part for the length."
)
SECONDS = 60
LENGTH = 16
_PRICE = 0.6  # of a right answer's reward, lost at full length


def check(seeds: int) -> frame.Finding:
  """The same task, its length priced by DRPO and in GRPO's reward."""
  runs = claims_runs.Runs(seeds, length=LENGTH, steps=40)
  found = {
    "drpo": runs.train(
      methods.Drpo(), lambda samples: {"right": _right(samples)}, _measure
    ),
    "grpo, length in the reward": runs.train(
      methods.Grpo(beta=0.0), lambda s: {"reward": _shaped(s)}, _measure
    ),
  }
  ours, theirs = (run.after for run in found.values())
  pushed = np.mean(
    found["grpo, length in the reward"].curves["pushed_down"], axis=1
  )
  accuracy = frame.differs(ours["right"], theirs["right"])
  length = frame.differs(ours["length"], theirs["length"])
  lost = accuracy is False or length is True
  return frame.Finding(
    shows=False if lost else (True if length is False else None),
    text=(
      f"GRPO pushed down a share of {frame.band(pushed)} of all completions"
      " although they were right, DRPO none, by construction. After 40 steps"
      f" DRPO has an accuracy of {frame.band(ours['right'])} with"
      f" {frame.band(ours['length'], 1)} tokens, GRPO"
      f" {frame.band(theirs['right'])} with"
      f" {frame.band(theirs['length'], 1)}."
    ),
    rows=[
      {
        "method": name,
        "accuracy": frame.band(run.after["right"]),
        "tokens": frame.band(run.after["length"], 1),
      }
      for name, run in found.items()
    ],
    curves={name: run.curves["length"] for name, run in found.items()},
    axes=("step", "tokens a completion"),
  )


def _right(samples) -> np.ndarray:
  """Each target token hits with a chance of a third: longer is likelier."""
  rows = samples.generation.completions
  dice = [
    zlib.crc32(row.tobytes() + bytes([index % 256]))
    for index, row in enumerate(rows)
  ]
  missed = (2 / 3) ** claims_runs.hits(samples).sum(axis=1)
  return (np.array(dice) / 2**32 < 1 - missed).astype(np.float32)


def _shaped(samples) -> np.ndarray:
  shares = claims_runs.lengths(samples) / LENGTH
  return _right(samples) * (1 - _PRICE * shares)


def _measure(samples) -> dict[str, np.ndarray]:
  """Also whether GRPO would push a right answer down."""
  credit = group.group_normalized(
    np.float32(_shaped(samples)), group_size=samples.group_size
  )
  right = _right(samples)
  return {
    "right": right,
    "length": claims_runs.lengths(samples),
    "pushed_down": (right > 0) & (np.asarray(credit) < 0),
  }
