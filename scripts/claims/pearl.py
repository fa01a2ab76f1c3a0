"""PEARL: two rewards of scales 1 and 100, both to be learnt."""

import claims_frame as frame
import claims_runs as runs

from jaxrl_llm import methods

CLAIM = (
  "No reward dominates by its variance: one whose scale is 100 times smaller is"
  " learnt beside the other, which a sum of rewards drowns."
)
SECONDS = 60.0
CONFIGS = {
  "sum, then GRPO": methods.Grpo(beta=0.0),
  "PEARL": methods.Pearl(),
  "GDPO": methods.Gdpo(),
}
_OTHER = 5  # a token that no prompt asks for


def _shares(samples):
  """Share of the first half that is the target, of the second that is _OTHER.

  Neither stands in the way of the other.
  """
  out = samples.generation
  half = out.mask.shape[1] // 2
  other = (out.completions == _OTHER) & out.mask
  return {
    "small": runs.hits(samples)[:, :half].mean(axis=1),
    "large": other[:, half:].mean(axis=1),
  }


def _rewards(samples):
  shares = _shares(samples)
  return {"small": shares["small"], "large": 100.0 * shares["large"]}


def check(seeds: int) -> frame.Finding:
  """Trains with the rewards added first, or last."""
  arena = runs.Runs(seeds, steps=40)
  trained = {
    name: arena.train(config, _rewards, _shares)
    for name, config in CONFIGS.items()
  }
  small, large = (
    {name: run.after[part] for name, run in trained.items()}
    for part in ("small", "large")
  )
  verdict = frame.differs(small["PEARL"], small["sum, then GRPO"])
  if verdict and large["PEARL"].mean() < 0.5:
    verdict = False  # the one at the other's cost
  return frame.Finding(
    shows=verdict,
    text=(
      "Share of right tokens after 40 steps by the reward of scale 1: PEARL"
      f" {frame.band(small['PEARL'])}, rewards added first"
      f" {frame.band(small['sum, then GRPO'])}; by that of scale 100:"
      f" {frame.band(large['PEARL'])} and"
      f" {frame.band(large['sum, then GRPO'])}."
    ),
    rows=[
      {
        "method": name,
        "scale 1": frame.band(small[name]),
        "scale 100": frame.band(large[name]),
      }
      for name in trained
    ],
    curves={
      f"{name}, scale 1": run.curves["small"] for name, run in trained.items()
    },
    axes=("step", "share of right tokens"),
  )
