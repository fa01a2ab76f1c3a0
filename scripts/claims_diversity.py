"""A task with several right answers, and what a method leaves of them.

Of each kind of prompt four first tokens can be right; which of them a problem
accepts, the model cannot know. The first is accepted most often, and it is the
habit of the model that was taught: to say it always is right most often, to say
several is right more often in several tries.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import zlib

import claims_frame as frame
import claims_runs
import claims_taught
from compare_tasks import KINDS, STOP, T, V
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.rollout import collect

ANSWERS = 4
# Chances of each answer: to be accepted by a problem, to be said when taught.
ACCEPTED = (0.75, 0.5, 0.5, 0.5)
HABIT = (0.5, 0.05, 0.05, 0.05)


class Runs(claims_runs.Runs):
  """Completions whose text is their first token, the answer."""

  def sample(self, params, number: int) -> list[collect.Samples]:
    """Samples of each run; equal arguments, equal result."""
    return [
      dataclasses.replace(
        one, texts=[str(token) for token in one.generation.completions[:, 0]]
      )
      for one in super().sample(params, number)
    ]


def compare(
  compared: Mapping[str, methods.MethodConfig],
  *,
  seeds: int,
  claimed: str,
  against: str,
  steps: int = 40,
) -> frame.Finding:
  """Whether one method is right more often in 8 tries than another.

  It shows if pass@8 and the entropy are both higher; it does not if either is
  lower.

  Args:
    compared: methods by label.
    seeds: of each.
    claimed: label of the method whose paper says so.
    against: label of the other.
    steps: of each.
  """
  runs = Runs(seeds, steps=steps, epochs=1, evaluations=1)
  start = claims_taught.taught(runs, examples)
  trained = {
    label: runs.train(config, reward, params=start)
    for label, config in compared.items()
  }
  policies = {"before": start} | {k: one.params for k, one in trained.items()}
  found = {
    label: measured(claims_taught.first_tokens(runs, params))
    for label, params in policies.items()
  }
  ours, theirs = found[claimed], found[against]
  verdicts = [
    frame.differs(ours[name], theirs[name]) for name in ("pass@8", "entropy")
  ]
  shows = None if None in verdicts else True
  said = "; ".join(
    f"{name} {frame.band(ours[name])} against {frame.band(theirs[name])}"
    for name in ours
  )
  text = f"{claimed} against {against} after {steps} steps: {said}."
  if frame.differs(theirs["pass@1"], ours["pass@1"]):
    text += " Its pass@1 is lower: it may only have gone less far."
  return frame.Finding(
    shows=False if False in verdicts else shows,
    text=text,
    rows=[
      {"": label} | {name: frame.band(x) for name, x in numbers.items()}
      for label, numbers in found.items()
    ],
    curves={label: one.curves["reward"] for label, one in trained.items()},
  )


def answers_of(kinds: np.ndarray) -> np.ndarray:
  """[n, ANSWERS] tokens that can be right, the usual one first."""
  return 8 + (np.asarray(kinds)[:, None] + np.arange(ANSWERS)[None]) % ANSWERS


def reward(samples: collect.Samples) -> dict[str, np.ndarray]:
  """1 where the first token is accepted; what is, a hash of the batch draws."""
  said = samples.generation.completions[:, :1]
  rng = np.random.default_rng(zlib.crc32(samples.generation.completions))
  accepted = rng.random((len(samples.problems), ANSWERS)) < ACCEPTED
  accepted = accepted.repeat(samples.group_size, axis=0)
  right = (said == answers_of(claims_taught.kinds_of(samples))) & accepted
  return {"reward": right.any(axis=1)}


def examples(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
  """[n, T]; the usual answer ends at once, the others go on for a while."""
  rows = rng.integers(1, V, (len(kinds), T))
  place = rng.random(len(kinds))[:, None] < np.cumsum(HABIT)[None]
  first = np.where(place.any(axis=1), place.argmax(axis=1), -1)
  chosen = answers_of(kinds)[np.arange(len(kinds)), first]
  rows[:, 0] = np.where(first < 0, rows[:, 0], chosen)
  stop = rng.random(rows.shape) < np.where(first == 0, 0.8, 0.3)[:, None]
  rows[:, 1:][stop[:, 1:]] = STOP
  return rows


def measured(first: np.ndarray) -> dict[str, np.ndarray]:
  """What a policy does on the task, exactly.

  Args:
    first: [seeds, KINDS, V] chances of the first token.

  Returns:
    {name: [seeds]}: pass@8 and pass@1; how many of the answers are among 8
    samples; entropy of the first token, nats.
  """
  tokens = answers_of(np.arange(KINDS))
  said = np.stack([first[:, k, tokens[k]] for k in range(KINDS)], axis=1)
  once, eight = np.zeros(len(first)), np.zeros(len(first))
  for accepted in itertools.product((0, 1), repeat=ANSWERS):
    chance = np.where(accepted, ACCEPTED, 1 - np.array(ACCEPTED)).prod()
    right = (said * np.array(accepted)).sum(axis=2)
    once += chance * right.mean(axis=1)
    eight += chance * (1 - (1 - right) ** 8).mean(axis=1)
  entropy = -(first * np.log(np.maximum(first, 1e-30))).sum(axis=2)
  return {
    "pass@8": eight,
    "pass@1": once,
    "distinct of 8": (1 - (1 - said) ** 8).sum(axis=2).mean(axis=1),
    "entropy": entropy.mean(axis=1),
  }
