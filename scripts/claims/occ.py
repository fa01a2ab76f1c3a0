"""OCC: reward, and how well the module predicts, in its four regimes."""

import claims_frame as frame
import claims_runs as runs

from jaxrl_llm import methods

CLAIM = (
  "Trained jointly with the calibrated policy loss, the reward is above that"
  " with a detached module and above that with cross-entropy, and the module"
  " goes on learning to predict."
)
SECONDS = 120.0
_WARMUP, _STEPS = 10, 30
_REGIMES = ("detach", "ce", "policy", "occ")


def _share(samples):
  """Of tokens that are the target."""
  return {"share": runs.hits(samples).mean(axis=1)}


def check(seeds: int) -> frame.Finding:
  """Two epochs of two mini-batches a rollout, so that lam acts."""
  arena = runs.Runs(seeds, steps=_STEPS, learning_rate=2e-3)
  found = {
    regime: arena.train(methods.Occ(mtp=regime, warmup=_WARMUP), _share)
    for regime in _REGIMES
  }
  # While it rises: in the end all have learnt the task.
  rise = {k: x.curves["reward"][:, _WARMUP:] for k, x in found.items()}
  reward = {k: x.mean(axis=1) for k, x in rise.items()}
  nll = {k: x.metrics["mtp_nll"][:, -5:].mean(axis=1) for k, x in found.items()}
  begun = found["occ"].metrics["mtp_nll"][:, _WARMUP]
  lam = found["occ"].metrics["mtp_lam"][:, _WARMUP:].mean(axis=1)
  verdicts = [
    frame.differs(reward["occ"], reward["detach"]),
    frame.differs(reward["occ"], reward["ce"]),
    frame.differs(begun, nll["occ"]),
  ]
  decided = None if None in verdicts else all(verdicts)
  return frame.Finding(
    shows=False if False in verdicts else decided,
    text=(
      f"The mean reward of steps {_WARMUP} to {_STEPS}, after the warm-up, is"
      f" {frame.band(reward['occ'])} with OCC, {frame.band(reward['detach'])}"
      f" detached, {frame.band(reward['ce'])} with cross-entropy and"
      f" {frame.band(reward['policy'])} with a fixed policy loss; meanwhile the"
      f" module's nats a token go from {frame.band(begun, 2)} to"
      f" {frame.band(nll['occ'], 2)} ({frame.band(nll['detach'], 2)}"
      f" detached). The mean lam is {frame.band(lam)}."
    ),
    rows=[
      {
        "regime": regime,
        "reward": frame.band(reward[regime]),
        "module's nats a token": frame.band(nll[regime], 2),
      }
      for regime in _REGIMES
    ],
    curves={regime: x.curves["reward"] for regime, x in found.items()},
  )
