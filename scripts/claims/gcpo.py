"""GCPO: which tokens get credit."""

import claims_frame as frame
import claims_runs
import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import contrast
from jaxrl_llm.training import score

CLAIM = (
  "Tokens that depend on the prompt get more credit than those that any prompt"
  " would have brought."
)
SECONDS = 45
_FIXED = 7  # rewarded whatever the prompt


def check(seeds: int) -> frame.Finding:
  """A policy is taught both kinds of tokens; then its weights are looked at."""
  runs = claims_runs.Runs(seeds, steps=40)
  trained = runs.train(
    methods.Grpo(beta=0.0), lambda samples: {"reward": _learnt(samples)}
  )
  plan = methods.Gcpo(negative="empty").build().plan
  logprobs = jax.jit(
    lambda params, rollout: (
      score.make_score(runs.model)(params, rollout).logprobs
    )
  )
  rows = []
  for run, samples in enumerate(runs.sample(trained.params, 1 << 21)):
    params = jax.tree.map(lambda x, run=run: x[run], trained.params)
    rollout = claims_runs.gathered(plan, samples, _reward)
    other = rollout.replace(
      prompts=rollout.extras["negative_prompts"],
      prompt_mask=rollout.extras["negative_prompt_mask"],
    )
    values = contrast.contrast(
      logprobs(params, rollout), logprobs(params, other)
    )
    kappa = contrast.concentration()
    ranked = contrast.rank_weights(values, rollout.mask, kappa=kappa)
    linear = contrast.linear_weights(values, rollout.mask)
    rows.append([*_by_kind(ranked, samples), *_by_kind(linear, samples)])
  depends, fixed, steeper, flatter = np.array(rows).T
  return frame.Finding(
    shows=frame.differs(depends, fixed),
    text=(
      "A token that names the prompt's answer has a mean weight of"
      f" {frame.band(depends)}, one that is the same for every prompt"
      f" {frame.band(fixed)}, where GRPO gives both 1; in proportion to the"
      f" divergence {frame.band(steeper)} and {frame.band(flatter)}. The"
      " negative prompt was empty; the policy had a share of"
      f" {frame.band(trained.after['reward'])} of its reward."
    ),
    rows=[
      {"weights": "rank", "of the prompt": a, "of any": b}
      for a, b in [(frame.band(depends), frame.band(fixed))]
    ]
    + [
      {"weights": "linear", "of the prompt": a, "of any": b}
      for a, b in [(frame.band(steeper), frame.band(flatter))]
    ],
  )


def _kinds(samples) -> tuple[np.ndarray, np.ndarray]:
  """[N, T]: right tokens that depend on the prompt, and that do not."""
  out = samples.generation
  return claims_runs.hits(samples), (out.completions == _FIXED) & out.mask


def _learnt(samples) -> np.ndarray:
  """Up to half of the places for each kind, in any order."""
  half = samples.generation.mask.shape[1] // 2
  counts = [np.minimum(kind.sum(axis=1), half) for kind in _kinds(samples)]
  return sum(counts) / (2 * half)


def _reward(samples):
  return {"reward": _learnt(samples)}


def _by_kind(weights, samples) -> list[float]:
  return [float(np.asarray(weights)[kind].mean()) for kind in _kinds(samples)]
