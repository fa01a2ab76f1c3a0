"""OISD: what its terms do to the inner layer, and to the reward."""

import claims_frame as frame
import claims_runs
import claims_states
import numpy as np

from jaxrl_llm import methods, types

CLAIM = (
  "On good rollouts the predictions of an inner layer come nearer to the final"
  " ones than under GRPO, and the reward rises with it."
)
SECONDS = 40
_NEEDS = frozenset({"layer_jsd", "attention_jsd", types.InnerLayer(layer=1)})


def check(seeds: int) -> frame.Finding:
  """The first of two layers, from the same weights with and without OISD."""
  runs = claims_runs.Runs(seeds, steps=12)
  grpo = methods.Grpo(beta=0.0)
  configs = {"GRPO": grpo, "OISD": methods.Oisd(method=grpo, layer=1)}
  table, curves = [], {}
  before = _divergences(runs, runs.params)
  table.append({"policy": "untrained"} | before | {"reward": before["reward"]})
  for name, config in configs.items():
    trained = runs.train(config, claims_states.shares)
    found = _divergences(runs, trained.params)
    found["reward"] = trained.after["reward"]
    table.append({"policy": name} | found)
    curves[name] = trained.curves["reward"]
  return _finding(table, curves)


def _finding(table, curves):
  _, grpo, oisd = table
  nearer = frame.differs(grpo["good rollouts"], oisd["good rollouts"])
  better = frame.differs(oisd["reward"], grpo["reward"])
  words = {True: "above", False: "below", None: "not decidedly off"}
  text = (
    "Divergence of the predictions on good rollouts"
    f" {frame.band(oisd['good rollouts'])} nats, under GRPO"
    f" {frame.band(grpo['good rollouts'])}; reward"
    f" {frame.band(oisd['reward'])}, {words[better]} GRPO's"
    f" {frame.band(grpo['reward'])}."
  )
  rows = [
    {k: v if isinstance(v, str) else frame.band(v) for k, v in row.items()}
    for row in table
  ]
  shows = None if nearer is None else nearer and better is not False
  return frame.Finding(
    shows=shows if better or not shows else None,
    text=text,
    rows=rows,
    curves=curves,
  )


def _divergences(runs, params) -> dict[str, np.ndarray]:
  """[seeds] nats a token, of fresh samples."""
  batch = claims_states.rollouts(runs, params, 1 << 19)
  found = claims_states.scores(runs, params, batch, _NEEDS)
  seeds, group = len(batch.rewards), batch.group_size
  rewards = batch.rewards.reshape(seeds, -1, group)
  good = (rewards >= rewards.mean(axis=2, keepdims=True)).reshape(seeds, -1)

  def mean(values, rows):
    counted = batch.mask & rows[:, :, None]
    return (np.asarray(values) * counted).sum(axis=(1, 2)) / np.maximum(
      counted.sum(axis=(1, 2)), 1
    )

  return {
    "good rollouts": mean(found.layer_jsd, good),
    "bad rollouts": mean(found.layer_jsd, ~good),
    "attention, good": mean(found.attention_jsd, good),
    "reward": batch.rewards.mean(axis=1),
  }
