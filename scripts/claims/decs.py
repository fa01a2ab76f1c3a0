"""DECS: the length of right answers, against GRPO and a length penalty."""

import claims_frame as frame
import claims_runs as runs
import compare_tasks as tasks
import numpy as np

from jaxrl_llm import methods

CLAIM = (
  "Right completions get shorter than with GRPO at equal accuracy; a penalty of"
  " the whole length pays for its shortness with accuracy."
)
SECONDS = 60
# Every word begins a chunk: what follows the answer is redundant, but no stop.
WORDS = ",".join(word.strip(" ") for word in tasks.WORDS[1:])


def check(seeds: int) -> frame.Finding:
  """The answer may come at once; the rest of the T tokens is free.

  Without the curriculum: where every prompt is soon solved by all, there is no
  other for it to fill a batch with.
  """
  arena = runs.Runs(seeds, steps=40)
  plain = methods.Grpo(beta=0.0)
  configs = {
    "GRPO": plain,
    "GRPO, length penalty": methods.SoftOverlong(
      method=plain, buffer=tasks.T - 1, factor=0.5
    ),
    "DECS": methods.Decs(words=WORDS, merge=False, curriculum=False),
  }
  found = {"untrained": arena.evaluate(arena.params, _right, _tokens)}
  curves = {}
  for label, config in configs.items():
    trained = arena.train(config, _right, _tokens)
    found[label], curves[label] = trained.after, _length(trained.curves)
  length = {label: _length(means) for label, means in found.items()}
  grpo, decs = found["GRPO"]["reward"], found["DECS"]["reward"]
  shows = [
    frame.differs(length["GRPO"], length["DECS"]),
    frame.differs(decs + 0.02, grpo),  # no more than two points worse
  ]
  parts = [
    f"{label} {frame.band(means['reward'])} right, in"
    f" {frame.band(length[label], 2)} tokens"
    for label, means in found.items()
  ]
  rows = [
    {
      "policy": label,
      "right": frame.band(means["reward"]),
      "tokens of right ones": frame.band(length[label], 2),
    }
    for label, means in found.items()
  ]
  return frame.Finding(
    shows=None if None in shows else all(shows),
    text=f"{'; '.join(parts)}; at most {tasks.T}.",
    rows=rows,
    curves=curves,
    axes=("step", "tokens of right completions"),
  )


def _right(samples):
  """The reward: the answer is written, wherever."""
  return {"right": runs.hits(samples).any(axis=1)}


def _tokens(samples):
  right = runs.hits(samples).any(axis=1)
  return {"right": right, "tokens": right * runs.lengths(samples)}


def _length(means):
  return means["tokens"] / np.maximum(means["right"], 1e-9)
