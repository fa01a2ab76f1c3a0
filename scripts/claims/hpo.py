"""HPO: reward where successes are rare, against negatives at full weight."""

import claims_frame as frame
import claims_runs as runs
import numpy as np

from jaxrl_llm import methods

CLAIM = (
  "Where successes are rare, negative advantages at less than full weight,"
  " fixed or adaptive, reach more reward than alpha = 1."
)
SECONDS = 60.0
CONFIGS = {
  "alpha 1": methods.Hpo(alpha=1.0),
  "HPO, alpha 0.6": methods.Hpo(),
  "A-HPO": methods.Hpo(adaptive=True),
}


def _three_hits(samples):
  """About one in a hundred completions of an untrained policy has three."""
  return {"right": runs.hits(samples).sum(axis=1) >= 3}


def check(seeds: int) -> frame.Finding:
  """Trains with each alpha on one sparse task."""
  arena = runs.Runs(2 * seeds, steps=40)  # learning is all or nothing here
  trained = {
    name: arena.train(config, _three_hits) for name, config in CONFIGS.items()
  }
  curves = {name: run.curves["reward"] for name, run in trained.items()}
  over = {name: curve.mean(axis=1) for name, curve in curves.items()}
  base = over["alpha 1"]
  verdicts = [
    frame.differs(over[name], base) for name in ("HPO, alpha 0.6", "A-HPO")
  ]
  gaps = {name: frame.band(x - base) for name, x in over.items()}
  return frame.Finding(
    shows=None if None in verdicts else all(verdicts),
    text=(
      "Mean reward over 40 steps on a task that about 1 % of the first"
      f" completions solve, less that of alpha = 1: HPO"
      f" {gaps['HPO, alpha 0.6']}, A-HPO {gaps['A-HPO']}."
    ),
    rows=[
      {
        "method": name,
        "reward over training": frame.band(over[name]),
        "reward at the end": frame.band(run.after["reward"]),
        "above 1/2 at the end": f"{np.sum(run.after['reward'] > 0.5)}"
        f" of {2 * seeds}",
      }
      for name, run in trained.items()
    ],
    curves=curves,
  )
