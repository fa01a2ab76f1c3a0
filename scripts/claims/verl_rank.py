"""VERL: does the bonus widen the hidden states, and with them the answers?"""

import claims_frame as frame
import claims_runs
import claims_states
import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import hidden_rank

CLAIM = (
  "The bonus keeps the effective rank of the hidden states, and with it the"
  " entropy and the best of several samples, above those under the base method."
)
SECONDS = 40
_NEEDS = frozenset({"token_hidden", "entropy"})


def check(seeds: int) -> frame.Finding:
  """The same weights trained with and without; a prefix every two tokens."""
  runs = claims_runs.Runs(seeds, steps=12)
  grpo = methods.Grpo(beta=0.0)
  ours = methods.VerlRank(method=grpo, stride=2, start="first")
  configs = {"GRPO": grpo, "VERL": ours}
  table, curves = [{"policy": "untrained"} | _seen(runs, runs.params)], {}
  for name, config in configs.items():
    trained = runs.train(config, claims_states.shares)
    table.append({"policy": name} | _seen(runs, trained.params))
    curves[name] = trained.curves["reward"]
  return _finding(table, curves)


def _finding(table, curves):
  _, grpo, verl = table
  names = ("effective rank", "entropy", "best of 8")
  verdicts = [frame.differs(verl[name], grpo[name]) for name in names]
  text = "; ".join(
    f"{name} {frame.band(verl[name])}, under GRPO {frame.band(grpo[name])}"
    for name in names
  )
  rows = [
    {k: v if isinstance(v, str) else frame.band(v) for k, v in row.items()}
    for row in table
  ]
  shows = True if all(verdicts) else None
  if any(verdict is False for verdict in verdicts):
    shows = False
  return frame.Finding(shows=shows, text=f"{text}.", rows=rows, curves=curves)


def _seen(runs, params) -> dict[str, np.ndarray]:
  """[seeds], of fresh samples."""
  batch = claims_states.rollouts(runs, params, 1 << 19)
  found = claims_states.scores(runs, params, batch, _NEEDS)
  ranks = jax.vmap(lambda h, m: hidden_rank.rank_dynamics(h, m, stride=2))(
    found.token_hidden, batch.mask
  )
  entropy = (np.asarray(found.entropy) * batch.mask).sum(axis=(1, 2))
  groups = batch.rewards.reshape(len(batch.rewards), -1, batch.group_size)
  return {
    "effective rank": np.asarray(ranks)[:, :, 2].mean(axis=1),
    "entropy": entropy / batch.mask.sum(axis=(1, 2)),
    "best of 8": groups.max(axis=2).mean(axis=1),
    "mean reward": batch.rewards.mean(axis=1),
  }
