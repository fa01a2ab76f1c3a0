"""CorVer: who is credited, and what the policy comes to say."""

import claims_frame as frame
import claims_runs as runs
import compare_tasks as tasks
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.advantages import token_returns
from jaxrl_llm.rollout import fact_counts, fact_rewards

CLAIM = (
  "Tokens of sentences that a corpus does not support are credited less than"
  " others of the same completion, and the share of supported facts rises."
)
SECONDS = 60
TOOLS = fact_rewards.Tools(fact_counts.facts, tasks.count_facts)
# Batches in which credit is looked at.
BATCHES = 8


def check(seeds: int) -> frame.Finding:
  """Two methods that are rewarded for naming facts; which they come to name."""
  arena = runs.Runs(seeds, steps=40)
  corver = methods.Corver(beta=0.0, **tasks.OPTIONS["corver"])
  found = {"untrained": arena.evaluate(arena.params, _names_a_fact, _facts)}
  curves = {}
  for label, config in (("GRPO", methods.Grpo(beta=0.0)), ("CorVer", corver)):
    trained = arena.train(config, _names_a_fact, _facts)
    found[label], curves[label] = trained.after, _share(trained.curves)
  shares = {label: _share(means) for label, means in found.items()}
  gaps = _gaps(arena)
  text = (
    "In a world where Rome and Paris host Mars, tokens of unsupported sentences"
    f" have {frame.band(gaps)} against the others of their completion; of the"
    f" facts that are named {frame.band(shares['untrained'])} are supported"
    f" before training, {frame.band(shares['GRPO'])} after GRPO,"
    f" {frame.band(shares['CorVer'])} after CorVer."
  )
  shows = [
    frame.differs(np.zeros(seeds), gaps),
    frame.differs(shares["CorVer"], shares["GRPO"]),
  ]
  rows = [
    {
      "policy": label,
      "names a fact": frame.band(means["named"]),
      "facts a completion": frame.band(means["facts"]),
      "of them supported": frame.band(shares[label]),
    }
    for label, means in found.items()
  ]
  return frame.Finding(
    shows=None if None in shows else all(shows),
    text=text,
    rows=rows,
    curves=curves,
    axes=("step", "share of facts supported"),
  )


def _counts(samples):
  """Of each row the counts of the facts in it, and rewards of its tokens."""
  small, _, counts = fact_rewards.of_completions(
    samples, tasks.TOKENIZER, TOOLS, fact_rewards.Tiers()
  )
  return [[c for c in row if c is not None] for row in counts], small


def _names_a_fact(samples):
  """The reward: a sentence names a fact, true or not."""
  counts, _ = _counts(samples)
  return {"named": np.array([len(row) > 0 for row in counts])}


def _facts(samples):
  counts, _ = _counts(samples)
  return {
    "named": np.array([len(row) > 0 for row in counts]),
    "facts": np.array([len(row) for row in counts]),
    "supported": np.array([sum(c > 0 for c in row) for row in counts]),
  }


def _share(means):
  return means["supported"] / np.maximum(means["facts"], 1e-9)


def _gaps(arena) -> np.ndarray:
  """[seeds] credit of unsupported tokens less that of their row's others."""
  gaps = [[] for _ in range(arena.setting.seeds)]
  for number in range(BATCHES):
    for seed, samples in enumerate(arena.sample(arena.params, number)):
      counts, small = _counts(samples)
      rewards = np.float32([len(row) > 0 for row in counts])
      mask = samples.generation.mask
      credit = token_returns.group_token_returns(
        rewards, small, mask, group_size=samples.group_size
      )
      bad = mask & (small < 0)
      both = bad.any(axis=1) & (mask & ~bad).any(axis=1)
      gap = _mean(credit, bad) - _mean(credit, mask & ~bad)
      gaps[seed] += gap[both].tolist()
  return np.array([np.mean(one) for one in gaps])


def _mean(values, mask):
  return (np.asarray(values) * mask).sum(axis=1) / np.maximum(mask.sum(1), 1)
