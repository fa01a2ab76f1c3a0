"""A-GRAE: on which prompts the credit is, as the policy gets better."""

import claims_frame as frame
import claims_runs as runs
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import group, reshaping

CLAIM = (
  "The share of the credit that hard prompts have rises with the mean reward,"
  " more than GRPO's does on the same samples."
)
SECONDS = 40.0


def _right(samples):
  """Prompts of four difficulties: one to four tokens must be the target."""
  needed = np.array([problem.id + 1 for problem in samples.problems])
  needed = np.repeat(needed, samples.group_size)
  return {"right": runs.hits(samples).sum(axis=1) >= needed}


def _credit(samples):
  """|A| of GRPO and A-GRAE, of groups below and above a rate of one half."""
  size = samples.group_size
  rewards = jnp.asarray(_right(samples)["right"], jnp.float32)
  plain = group.group_normalized(rewards, group_size=size, eps=1e-6)
  # The damping of positive credit is no matter of difficulty.
  shaped = reshaping.difficulty_reshaped(
    plain, rewards, group_size=size, alpha=1e-6
  )
  rates = np.repeat(np.asarray(rewards).reshape(-1, size).mean(axis=1), size)
  return {
    f"{name} {kind}": np.abs(np.asarray(credit)) * rows
    for name, credit in (("GRPO", plain), ("A-GRAE", shaped))
    for kind, rows in (("hard", rates < 0.5), ("easy", rates > 0.5))
  }


def check(seeds: int) -> frame.Finding:
  """Trains with A-GRAE and follows both shares on its own samples."""
  run = runs.Runs(seeds, steps=40, prompts=16).train(
    methods.AGrae(), _right, _credit
  )
  shares = {
    name: run.curves[f"{name} hard"]
    / np.maximum(run.curves[f"{name} hard"] + run.curves[f"{name} easy"], 1e-9)
    for name in ("GRPO", "A-GRAE")
  }
  omega = run.curves["reward"]
  # How much more of the credit hard prompts have than under GRPO.
  lean = shares["A-GRAE"] - shares["GRPO"]
  weak, strong = (
    np.array([_mean_where(a, b) for a, b in zip(lean, rows, strict=True)])
    for rows in (omega < 0.4, omega > 0.6)
  )
  slopes = [np.polyfit(a, b, 1)[0] for a, b in zip(omega, lean, strict=True)]
  return frame.Finding(
    shows=frame.differs(slopes, np.zeros(seeds)),
    text=(
      "Share of |A| on prompts solved less than half the time, less GRPO's on"
      f" the same samples: {frame.band(weak)} while the mean reward is below"
      f" 0.4, {frame.band(strong)} above 0.6; it rises by"
      f" {frame.band(slopes)} per unit of mean reward."
    ),
    rows=[
      {
        "method": name,
        "hard prompts' share, first 10 steps": frame.band(
          share[:, :10].mean(axis=1)
        ),
        "last 10 steps": frame.band(share[:, -10:].mean(axis=1)),
      }
      for name, share in shares.items()
    ],
    curves={"A-GRAE less GRPO": lean, "mean reward": omega},
    axes=("step", "share of |A| on hard prompts"),
  )


def _mean_where(values, rows):
  """Of a seed; 0 where there is no such step."""
  return values[rows].mean() if rows.any() else 0.0
