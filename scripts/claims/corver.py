"""CorVer: who is credited, and what the policy comes to say."""

import claims_frame as frame
import compare_runs as runs
import compare_tasks as tasks
import numpy as np

from jaxrl_llm.advantages import token_returns
from jaxrl_llm.rewards import scored
from jaxrl_llm.rollout import fact_counts, fact_rewards, sentences

CLAIM = (
  "Tokens of sentences that a corpus does not support are credited less than"
  " others of the same completion, and the share of supported facts rises."
)
SECONDS = 90
BATCHES = 8


def check(seeds: int) -> frame.Finding:
  """Two methods that are rewarded for naming facts; which they come to name."""
  setting = runs.Setting(seeds=seeds, steps=30, score=_names_a_fact)
  arena = runs.Arena(setting)
  said = {"untrained": _said(arena, arena.params)}
  for label, name in (("GRPO", "grpo"), ("CorVer", "corver")):
    state, *_ = arena.learn(runs.Prepared(arena, name, beta=0.0))
    said[label] = _said(arena, state.params)
  rows = [
    {"policy": label} | {name: frame.band(x) for name, x in found.items()}
    for label, found in said.items()
  ]
  gap = said["untrained"]["credit of unsupported less others"]
  share = {label: found["supported"] for label, found in said.items()}
  shows = [
    frame.differs(np.zeros(len(gap)), gap),
    frame.differs(share["CorVer"], share["GRPO"]),
  ]
  text = (
    "In a world where Rome and Paris host Mars, tokens of unsupported"
    f" sentences have {frame.band(gap)} against the others of their completion;"
    f" of the facts that are named {frame.band(share['untrained'])} are"
    f" supported before training, {frame.band(share['GRPO'])} after GRPO,"
    f" {frame.band(share['CorVer'])} after CorVer."
  )
  decided = None if None in shows else all(shows)
  return frame.Finding(shows=decided, text=text, rows=rows)


def _names_a_fact(task, samples) -> scored.Scored:
  """1 for a completion in which a sentence names a fact, true or not."""
  del task
  rewards = np.float32([_has_fact(text) for text in samples.texts])
  parts = {"first": rewards, "second": np.full_like(rewards, np.nan)}
  return scored.Scored(rewards, parts, dict.fromkeys(scored.KINDS, 0), [])


def _has_fact(text: str) -> bool:
  cut = sentences.sentences(text, (0, len(text)))
  found = fact_counts.facts([text[start:end] for start, end in cut])
  return any(fact_counts.query(facts) for facts in found)


def _said(arena, params) -> dict[str, list[float]]:
  """What the policies of the seeds say, and how it is credited."""
  found = [_of_run(arena, params, run) for run in range(arena.setting.seeds)]
  return {name: [one[name] for one in found] for name in found[0]}


def _of_run(arena, params, run) -> dict[str, float]:
  tools = fact_rewards.Tools(fact_counts.facts, tasks.count_facts)
  counts, gaps, outcomes, rows = [], [], [], 0
  for index in range(BATCHES):
    found = arena.rounds(params, 1000 + index).sampler(run).sample()
    small, _, of_rows = fact_rewards.of_completions(
      found.samples, tasks.TOKENIZER, tools, fact_rewards.Tiers()
    )
    mask = found.samples.generation.mask
    credit = np.asarray(
      token_returns.group_token_returns(
        found.rewards, small, mask, group_size=found.group_size
      )
    )
    bad = mask & (small < 0)
    both = bad.any(axis=1) & (mask & ~bad).any(axis=1)
    gaps += (_mean(credit, bad) - _mean(credit, mask & ~bad))[both].tolist()
    counts += [c for row in of_rows for c in row if c is not None]
    outcomes += found.rewards.tolist()
    rows += len(mask)
  return {
    "reward": float(np.mean(outcomes)),
    "facts a completion": len(counts) / rows,
    "supported": float(np.mean(np.asarray(counts or [0]) > 0)),
    "credit of unsupported less others": float(np.mean(gaps or [0.0])),
  }


def _mean(values, mask):
  return (values * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
