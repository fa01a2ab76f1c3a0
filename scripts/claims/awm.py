"""AWM: the gradient is that of pre-training; a slow average as the anchor."""

import claims_frame as frame
import claims_runs
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.training import score

CLAIM = (
  "The policy's gradient is the pre-training gradient weighed by the advantage,"
  " and a slow average of the policy as an anchor costs no reward while it"
  " keeps the policy nearer to where it began."
)
SECONDS = 60
_FORMS = {
  "no anchor": methods.Awm(beta=0.0, ema_beta=0.0),
  "anchor, decay up to 0.3": methods.Awm(beta=0.0),
  "anchor of 0.03, decay 0.95": methods.Awm(
    beta=0.0, ema_beta=0.03, ema_rate=1.0, ema_max=0.95
  ),
}


def check(seeds: int) -> frame.Finding:
  """Three runs that differ in the anchor alone."""
  runs = claims_runs.Runs(seeds, steps=30)
  gap = _gradient_gap(runs)
  found = {name: runs.train(config, _reward) for name, config in _FORMS.items()}
  drifts = {name: _drift(runs, run) for name, run in found.items()}
  free, _, slow = found
  nearer = frame.differs(drifts[free], drifts[slow])
  worse = frame.differs(
    found[free].after["reward"], found[slow].after["reward"]
  )
  return frame.Finding(
    shows=None if nearer is None else bool(nearer and not worse),
    text=(
      "The gradient of the whole model differs from the weighed pre-training"
      f" gradient by {gap:.1e} of its size. After 30 steps the policy without"
      f" an anchor is {frame.band(drifts[free])} nats a token from its start at"
      f" a reward of {frame.band(found[free].after['reward'])}, with a slow one"
      f" {frame.band(drifts[slow])} at"
      f" {frame.band(found[slow].after['reward'])}."
    ),
    rows=[
      {
        "form": name,
        "reward": frame.band(run.after["reward"]),
        "nats from the start": frame.band(drifts[name]),
      }
      for name, run in found.items()
    ],
    curves={name: run.curves["reward"] for name, run in found.items()},
  )


def _reward(samples):
  return {"reward": claims_runs.hits(samples).mean(axis=1)}


def _drift(runs, run) -> np.ndarray:
  """[seeds] KL(policy || start) a token, from samples of the policy."""
  logprobs = _logprobs(runs)
  drifts = []
  for index, samples in enumerate(runs.sample(run.params, 1 << 21)):
    rollout = samples.rollout(np.zeros(len(samples.texts)))
    now, start = (
      np.asarray(logprobs(jax.tree.map(lambda x, i=index: x[i], tree), rollout))
      for tree in (run.params, run.start)
    )
    drifts.append((now - start)[rollout.mask].mean())
  return np.array(drifts)


def _gradient_gap(runs) -> float:
  """|AWM's gradient - mean_i -A_i grad S_i| / |that|, of one real batch."""
  method = methods.Awm(beta=0.0, ema_beta=0.0).build()
  params = jax.tree.map(lambda x: x[0], runs.params)
  samples = runs.sample(runs.params, 0)[0]
  rollout = samples.rollout(_reward(samples)["reward"])
  logprobs, mask = _logprobs(runs), rollout.mask
  old = logprobs(params, rollout)
  rollout = jax.tree.map(jnp.asarray, rollout).replace(old_logprobs=old)
  credit = method.advantage(rollout)

  def objective(params):
    scores = score.make_score(runs.model)(params, rollout)
    weights = method.weighting(rollout.mask, rollout.weights)
    return method.objective(scores, rollout, credit[:, None] * mask, weights)[0]

  def pretraining(params):
    means = logprobs(params, rollout).sum(axis=1) / mask.sum(axis=1)
    return -(credit * means).mean()

  ours, theirs = (
    np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])
    for grads in (jax.grad(objective)(params), jax.grad(pretraining)(params))
  )
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _logprobs(runs):
  scorer = score.make_score(runs.model)
  return jax.jit(lambda params, rollout: scorer(params, rollout).logprobs)
