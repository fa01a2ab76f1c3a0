"""BNPO: the variance of the gradient at one policy, on the same rollouts."""

import dataclasses

import claims_frame as frame
import claims_gradients as gradients
import claims_runs as runs
import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import group
from jaxrl_llm.methods import base

CLAIM = (
  "At one policy the gradient has less variance than with GRPO's advantage and"
  " than with reward minus mean."
)
SECONDS = 90.0
_ROLLOUTS = 32
_STEPS = 4  # of training, after which a policy is held fixed
_OTHERS = {
  "GRPO": base.from_rewards(group.group_normalized, eps=1e-6),
  "reward minus mean": base.from_rewards(group.group_centred),
}


def _right(samples):
  """Prompts of four difficulties: one to four tokens must be the target."""
  needed = np.array([problem.id + 1 for problem in samples.problems])
  needed = np.repeat(needed, samples.group_size)
  return {"right": runs.hits(samples).sum(axis=1) >= needed}


def check(seeds: int) -> frame.Finding:
  """Gradients of three advantages, all else as BNPO has it."""
  arena = runs.Runs(seeds, steps=_STEPS, prompts=16, group_size=16)
  trained = arena.train(methods.Grpo(beta=0.0), _right).params
  makers = {
    name: gradients.make_gradients(arena.model, method)
    for name, method in _methods().items()
  }
  found = {
    "untrained": _variances(arena, makers, arena.params),
    f"{_STEPS} steps": _variances(arena, makers, trained),
  }
  rows, logs = [], {name: [] for name in _OTHERS}
  for policy, (rate, variances) in found.items():
    for name, x in variances.items():
      ratios = np.log(variances["BNPO"] / x)
      if name in logs:
        logs[name].append(ratios)
      rows.append(
        {
          "policy": f"{policy}, mean reward {rate:.2f}",
          "advantage": name,
          "tr Cov(g) / |E g|^2": frame.band(x, 2),
          "BNPO's over this": frame.factor(ratios),
        }
      )
  # Of a seed's two policies the geometric mean.
  pooled = {name: np.mean(ratios, axis=0) for name, ratios in logs.items()}
  verdicts = [frame.differs(np.zeros(seeds), x) for x in pooled.values()]
  return frame.Finding(
    shows=False if False in verdicts else all(verdicts) or None,
    text=(
      f"tr Cov(g) / |E g|^2 over {_ROLLOUTS} rollouts of 16 prompts x 16, of"
      f" policies untrained and after {_STEPS} steps. BNPO's as a factor: "
      + ", ".join(
        f"{frame.factor(x)} of {name}'s" for name, x in pooled.items()
      )
      + "."
    ),
    rows=rows,
  )


def _variances(arena, makers, params):
  """(mean reward, {advantage: [seeds] relative variances})."""
  sampled = [arena.sample(params, 10**6 + i) for i in range(_ROLLOUTS)]
  rollouts = [
    [x.rollout(np.float32(_right(x)["right"])) for x in each]
    for each in zip(*sampled, strict=True)
  ]
  found = {name: [] for name in makers}
  for run, own in enumerate(rollouts):
    policy = jax.tree.map(lambda x, run=run: x[run], params)
    for name, make in makers.items():
      found[name].append(gradients.relative_variance(make(policy, own)))
  rate = np.mean([[x.rewards for x in own] for own in rollouts])
  return rate, {name: np.array(values) for name, values in found.items()}


def _methods() -> dict[str, base.Method]:
  bnpo = methods.Bnpo().build()
  return {"BNPO": bnpo} | {
    name: dataclasses.replace(bnpo, advantage=advantage)
    for name, advantage in _OTHERS.items()
  }
