"""NGRPO: what a policy learns from groups in which every answer is wrong."""

import claims_frame as frame
import claims_gradients as gradients
import claims_runs as runs
import jax
import numpy as np

from jaxrl_llm import methods

CLAIM = (
  "All-wrong groups, which teach GRPO nothing, have a gradient, and a policy"
  " that is sure of wrong answers learns from them."
)
SECONDS = 70.0
# Without the entropy bonus, which has a gradient of its own.
CONFIGS = {
  "GRPO": methods.Ngrpo(n_virtual=0, entropy_coef=0.0),
  "NGRPO": methods.Ngrpo(entropy_coef=0.0),
}
_OTHER = 5  # a token that no prompt asks for


def _wrong(samples):
  """The task that the policy knows: a token that is never the target."""
  return {"other": (samples.generation.completions == _OTHER).mean(axis=1)}


def _right(samples):
  """The task that it is to learn."""
  return {"right": runs.hits(samples).sum(axis=1) >= 2}


def _uniform(samples):
  """Whether the group of a completion is all wrong."""
  rewards = _right(samples)["right"].reshape(-1, samples.group_size)
  wrong = ~rewards.any(axis=1)
  return {"all wrong": np.repeat(wrong, samples.group_size)}


def check(seeds: int) -> frame.Finding:
  """Trains with and without the imagined completion; all else is the same."""
  start = runs.Runs(2 * seeds, steps=20)  # learning is all or nothing here
  params = start.train(methods.Dapo(), _wrong).params
  arena = runs.Runs(2 * seeds, steps=40)
  norms = {
    name: _norms(arena, config.build(), params)
    for name, config in CONFIGS.items()
  }
  trained = {
    name: arena.train(config, _right, _uniform, params=params)
    for name, config in CONFIGS.items()
  }
  curves = {name: run.curves["reward"] for name, run in trained.items()}
  over = {name: curve.mean(axis=1) for name, curve in curves.items()}
  learns = frame.differs(over["NGRPO"], over["GRPO"])
  wrong = trained["GRPO"].curves["all wrong"][:, 0]
  signal = (norms["NGRPO"] > 0).all() and (norms["GRPO"] == 0).all()
  return frame.Finding(
    shows=learns if signal else False,
    text=(
      f"At first {frame.band(wrong, 2)} of the groups are all wrong. On such"
      f" groups alone the gradient's norm is {frame.band(norms['NGRPO'])},"
      f" GRPO's {frame.band(norms['GRPO'])}. Mean reward over 40 steps:"
      f" {frame.band(over['NGRPO'])} against {frame.band(over['GRPO'])}."
    ),
    rows=[
      {
        "method": name,
        "norm on all-wrong groups": frame.band(norms[name]),
        "reward over training": frame.band(over[name]),
        "reward at the end": frame.band(run.after["reward"]),
      }
      for name, run in trained.items()
    ],
    curves=curves,
  )


def _norms(arena, method, params) -> np.ndarray:
  """Of each policy the norm of its first gradient, no answer being right."""
  found = gradients.make_gradients(arena.model, method)
  norms = []
  for run, samples in enumerate(arena.sample(params, 0)):
    policy = jax.tree.map(lambda x, run=run: x[run], params)
    wrong = samples.rollout(np.zeros(len(samples.texts), np.float32))
    norms.append(np.linalg.norm(found(policy, [wrong])))
  return np.array(norms)
