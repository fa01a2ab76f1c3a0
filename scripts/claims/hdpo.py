"""HDPO: tool calls where they are not needed."""

import zlib

import claims_frame as frame
import claims_runs
import numpy as np

from jaxrl_llm import methods

CLAIM = (
  "Tool calls fall at equal accuracy, and further than where economy is added"
  " to the reward with the same weight."
)
SECONDS = 60
_TOOL = "Wait"  # a word of the task: calls a tool that does nothing


def check(seeds: int) -> frame.Finding:
  """From a policy that calls tools all the time, two ways to wean it."""
  taught = claims_runs.Runs(seeds, steps=25).train(
    methods.Grpo(beta=0.0), _wasteful, _measure
  )
  runs = claims_runs.Runs(seeds, steps=30, learning_rate=2e-3)
  found = {
    "hdpo": runs.train(
      methods.Hdpo(marker=_TOOL), _parts, _measure, params=taught.params
    ),
    "grpo, summed reward": runs.train(
      methods.Grpo(beta=0.0), _summed, _measure, params=taught.params
    ),
  }
  ours, theirs = (run.after for run in found.values())
  fewer = frame.differs(theirs["tools"], ours["tools"])
  worse = frame.differs(theirs["right"], ours["right"])
  return frame.Finding(
    shows=None if fewer is None else bool(fewer and not worse),
    text=(
      f"From {frame.band(taught.after['tools'], 2)} calls a completion HDPO"
      f" comes to {frame.band(ours['tools'], 2)} at an accuracy of"
      f" {frame.band(ours['right'])}, GRPO on the sum to"
      f" {frame.band(theirs['tools'], 2)} at {frame.band(theirs['right'])}."
    ),
    rows=[
      {
        "method": name,
        "calls": frame.band(run.after["tools"], 2),
        "accuracy": frame.band(run.after["right"]),
      }
      for name, run in found.items()
    ],
    curves={name: run.curves["tools"] for name, run in found.items()},
    axes=("step", "tool calls a completion"),
  )


def _tools(samples) -> np.ndarray:
  return np.array([text.count(_TOOL) for text in samples.texts])


def _right(samples) -> np.ndarray:
  """A target token, and luck three times of four: accuracy stays noisy."""
  lucky = [
    zlib.crc32(row.tobytes() + bytes([index % 256])) % 4 > 0
    for index, row in enumerate(samples.generation.completions)
  ]
  return np.float32(claims_runs.hits(samples).any(axis=1) & np.array(lucky))


def _wasteful(samples):
  hit = claims_runs.hits(samples).any(axis=1)
  return {"reward": hit + np.minimum(_tools(samples), 3) / 3}


def _parts(samples):
  return {"right": _right(samples), "form": np.ones(len(samples.texts))}


def _summed(samples):
  economy = methods.Hdpo().w_tool / (_tools(samples) + 1)
  return {"reward": 0.9 * _right(samples) + 0.1 + economy}


def _measure(samples):
  hit = claims_runs.hits(samples).any(axis=1)
  return {"right": hit * 0.75, "tools": _tools(samples)}
