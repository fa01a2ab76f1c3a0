"""ASPO: where code is first called, and how often answers are right."""

import claims_frame as frame
import claims_runs as runs
import compare_tasks as tasks
import numpy as np

from jaxrl_llm import methods

CLAIM = "The first call of code moves forward while accuracy holds."
SECONDS = 60.0
_WORD = "Wait "  # stands for a call of code
CONFIGS = {
  "DAPO (k 0)": methods.Aspo(k=0.0, marker=_WORD),
  "ASPO": methods.Aspo(marker=_WORD),
}


def _calls(samples):
  """[N, T] true where code is called."""
  out = samples.generation
  return (out.completions == tasks.WORDS.index(_WORD)) & out.mask


def _right(samples):
  """An answer needs a call, wherever it is, and the target three times."""
  called = _calls(samples).any(axis=1)
  return {"right": called & (runs.hits(samples).sum(axis=1) >= 3)}


def _late(samples):
  """What the policy knows before: to call in the second half alone."""
  calls = _calls(samples)
  half = calls.shape[1] // 2
  late = calls[:, half:].any(axis=1) & ~calls[:, :half].any(axis=1)
  return {"late": late, "hits": runs.hits(samples).mean(axis=1)}


def _positions(samples):
  """Token of the first call; T where there is none."""
  calls = _calls(samples)
  first = np.where(calls.any(axis=1), calls.argmax(axis=1), calls.shape[1])
  return {"first call": first, "calls": calls.any(axis=1)}


def check(seeds: int) -> frame.Finding:
  """Trains with and without the bonus; all else is the same."""
  start = runs.Runs(2 * seeds, steps=20)
  params = start.train(methods.Dapo(), _late).params
  arena = runs.Runs(2 * seeds, steps=30)
  before = arena.evaluate(params, _right, _positions)["first call"]
  trained = {
    name: arena.train(config, _right, _positions, params=params)
    for name, config in CONFIGS.items()
  }
  first, right = (
    {name: run.after[part] for name, run in trained.items()}
    for part in ("first call", "reward")
  )
  earlier = frame.differs(first["DAPO (k 0)"], first["ASPO"])
  worse = frame.differs(right["DAPO (k 0)"], right["ASPO"])
  return frame.Finding(
    shows=False if worse else earlier,
    text=(
      f"The first call moves from token {frame.band(before, 2)} of {tasks.T}"
      f" to {frame.band(first['ASPO'], 2)} in 30 steps, without the bonus to"
      f" {frame.band(first['DAPO (k 0)'], 2)}; right answers"
      f" {frame.band(right['ASPO'])} and {frame.band(right['DAPO (k 0)'])}."
    ),
    rows=[
      {
        "method": name,
        "first call at token": frame.band(first[name]),
        "right": frame.band(right[name]),
        "call code": frame.band(run.after["calls"]),
      }
      for name, run in trained.items()
    ],
    curves={name: run.curves["first call"] for name, run in trained.items()},
    axes=("step", "token of the first call"),
  )
