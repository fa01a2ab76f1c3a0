"""RL2ML: exact expectations, and how fast rare successes are learnt from."""

import itertools

import claims_frame as frame
import claims_runs
import claims_taught
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import success_counts
from jaxrl_llm.testing import contract, rollouts

CLAIM = (
  "Weights of success counts are unbiased for an objective between expected"
  " reward (q = 0) and likelihood (q = 1) or beyond; a larger q moves easy"
  " prompts less and those of rare success more."
)
SECONDS = 90
ORDERS = (0.0, 1.0, 2.0)
G, TOKENS = 4, 3
# How many tokens must be the target: kinds 2 and 3 are right by chance once in
# a hundred completions, the others in two of five.
NEEDED = np.array([1, 1, 3, 3])


def check(seeds: int) -> frame.Finding:
  """Enumerates a small policy exactly, then trains on a hard sparse task."""
  error = max(
    _bias(q, baseline) for q in ORDERS for baseline in ("loo", "score", "none")
  )
  runs = claims_runs.Runs(4 * seeds, steps=30, epochs=1, evaluations=1)
  found = {
    f"q = {q:g}": runs.train(methods.Rl2ml(q=q), _reward, _hard).curves
    for q in ORDERS
  }
  for one in found.values():
    one |= {"easy": 1.0 - one["hard"], "rest": one["reward"] - one["right"]}
  speed = {k: _mean(one, "right", "hard") for k, one in found.items()}
  easy = {k: _mean(one, "rest", "easy") for k, one in found.items()}
  counts = jnp.arange(1, 9)
  push = [
    counts
    / 8
    * success_counts.success_weight(counts, jnp.full(8, 8), group_size=8, q=q)
    for q in ORDERS
  ]
  shifted = {label: speed[label] - easy[label] for label in found}
  text = (
    f"Over all {TOKENS**G} groups of a policy, the mean gradient differs from"
    f" slope(p) grad p by at most {error:.1e} of it. Mean reward over"
    f" {runs.setting.steps} steps on prompts of first success 0.01, {4 * seeds}"
    " runs: "
    + ", ".join(f"{label} {frame.band(x)}" for label, x in speed.items())
    + "; less that on easy prompts, q = 2 beyond q = 0: "
    + frame.band(shifted["q = 2"] - shifted["q = 0"])
    + "."
  )
  return frame.Finding(
    shows=error < 1e-4 and frame.differs(shifted["q = 2"], shifted["q = 0"]),
    text=text,
    rows=[
      {
        "": label,
        "reward, hard prompts": frame.band(speed[label]),
        "reward, easy prompts": frame.band(easy[label]),
        "push at K = 1 of 8": float(own[0]),
        "push at K = 7 of 8": float(own[6]),
      }
      for label, own in zip(found, push, strict=True)
    ],
    curves={
      label: one["right"] / np.maximum(one["hard"], 1e-9)
      for label, one in found.items()
    },
    axes=("step", "mean reward on hard prompts"),
  )


def _mean(curves, right, of) -> np.ndarray:
  """[seeds] share of all completions of some prompts that were right."""
  return curves[right].sum(axis=1) / curves[of].sum(axis=1)


def _reward(samples):
  """1 where enough of the tokens are the target."""
  kinds = claims_taught.kinds_of(samples)
  return {"reward": claims_runs.hits(samples).sum(axis=1) >= NEEDED[kinds]}


def _hard(samples):
  """Which completions are of hard prompts, and right as well."""
  hard = NEEDED[claims_taught.kinds_of(samples)] > 1
  return {"hard": hard, "right": hard & _reward(samples)["reward"]}


def _bias(q: float, baseline: str) -> float:
  """Largest error of the mean gradient over all groups, relative."""
  method = methods.Rl2ml(q=q, baseline=baseline).build()
  logits = jnp.array([0.3, -0.8, 0.1])
  groups = jnp.array(list(itertools.product(range(TOKENS), repeat=G)))
  blank = rollouts.make_rollout(groups=1, group_size=G).replace(
    mask=jnp.ones((G, 1), bool)
  )

  def gradient(tokens):
    """Of the loss of one group in the logits; token 1 is right."""

    def logprobs(logits):
      return jax.nn.log_softmax(logits)[tokens][:, None]

    now, back = jax.vjp(logprobs, logits)
    rollout = blank.replace(
      rewards=(tokens == 1).astype(jnp.float32), old_logprobs=now
    )
    scores = rollouts.make_scores(blank).replace(
      logprobs=now, entropy=None, values=None, prompt_logprobs=None
    )
    pull = contract.evaluate(method, scores, rollout)[2].logprobs
    return -back(pull)[0]

  chances = jax.nn.softmax(logits)
  mean = (
    chances[groups].prod(axis=1)[:, None] * jax.jit(jax.vmap(gradient))(groups)
  ).sum(axis=0)
  slope = success_counts.slope(chances[1], group_size=G, q=q)
  target = slope * jax.grad(lambda x: jax.nn.softmax(x)[1])(logits)
  return float(np.abs(mean - target).max() / np.abs(target).max())
