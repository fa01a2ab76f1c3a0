"""A-GRAE: on which prompts the credit is, as the policy gets better."""

import claims_frame as frame
import claims_runs as runs
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import group, reshaping

CLAIM = (
  "The weight moves from easy to hard prompts as the mean reward of the batch"
  " grows."
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
  """Trains with A-GRAE and compares with GRPO's credit on its own samples."""
  curves = (
    runs.Runs(seeds, steps=40, prompts=16)
    .train(methods.AGrae(), _right, _credit)
    .curves
  )
  omega = curves["reward"]
  with np.errstate(divide="ignore", invalid="ignore"):
    hard, easy = (
      curves[f"A-GRAE {kind}"] / curves[f"GRPO {kind}"]
      for kind in ("hard", "easy")
    )
    lean = np.log(hard / easy)  # NaN where a batch has but one kind
  found = [_line(*pair) for pair in zip(omega, lean, strict=True)]
  slopes, weak, strong = np.transpose(found)
  return frame.Finding(
    shows=frame.differs(slopes, np.zeros(seeds)),
    text=(
      "Weight of prompts solved less than half the time over that of prompts"
      f" solved more often, GRPO's being 1: {frame.factor(weak)} at a mean"
      f" reward of 0.2, {frame.factor(strong)} at 0.8, on the line through all"
      " steps."
    ),
    rows=[
      {"slope of log weight per mean reward": frame.band(slopes)},
    ],
    curves={"mean reward": omega},
  )


def _line(omega, lean) -> tuple[float, float, float]:
  """Slope of one seed's steps, and where its line is at 0.2 and 0.8."""
  known = np.isfinite(lean)
  slope, start = np.polyfit(omega[known], lean[known], 1)
  return slope, start + 0.2 * slope, start + 0.8 * slope
