"""A sampler for tests of plans: scripted rewards, tokens that tell rows."""

import numpy as np

from jaxrl_llm.data import sources
from jaxrl_llm.rewards import scored
from jaxrl_llm.rollout import collect, engine, plans

S, T = 2, 3


def make_samples(first_problem, problems, group_size, first_id):
  """Groups whose first token is the id of the problem, then of the row."""
  rows = problems * group_size
  numbers = np.arange(first_problem, first_problem + problems)
  ids = np.arange(first_id, first_id + rows)
  tokens = np.zeros((rows, T), np.int32)
  tokens[:, 0], tokens[:, 1] = numbers.repeat(group_size), ids
  mask = np.arange(T)[None] < 2
  return collect.Samples(
    problems=[sources.Problem(int(n), f"q{n}", f"a{n}") for n in numbers],
    prompts=np.tile(numbers[:, None], (1, S)).astype(np.int32),
    prompt_mask=np.ones((problems, S), bool),
    generation=engine.Generation(
      completions=tokens,
      mask=np.repeat(mask, rows, axis=0),
      logprobs=(-0.125 * tokens).astype(np.float32),
      behaviour_logprobs=(-0.25 * tokens).astype(np.float32),
      finish_reason=np.ones(rows, np.int32),
      checksum=np.zeros(rows, np.uint32),
    ),
    prompt_texts=[f"q{n}" for n in numbers],
    texts=[f"row {i}" for i in ids],
  )


def score(rewards):
  """What a pool says that gives these rewards, by two verifiers."""
  rewards = np.asarray(rewards, np.float32)
  lost = int(np.isnan(rewards).sum())
  return scored.Scored(
    rewards=rewards,
    components={"right": np.floor(rewards), "rest": rewards % 1},
    failures={"nan": lost},
    messages=["a row is NaN"] * lost,
  )


class Data:
  """The run's data and rewards, over its steps."""

  def __init__(self, script, *, batch_size=2, group_size=2, greedy=()):
    """Takes rewards [groups, G] in the order of the problems."""
    self._script = np.asarray(script, np.float32)
    self._sizes = batch_size, group_size
    self._greedy = greedy
    self.next = 0

  def sampler(self, step):
    """That of one step."""
    size, group = self._sizes

    def draw():
      first, self.next = self.next, self.next + size
      return range(first, self.next)

    def collect_rows(problems, first_id):
      return make_samples(problems[0], len(problems), group, first_id)

    def score_rows(samples):
      ids = [problem.id for problem in samples.problems]
      if samples.group_size == 1 and group > 1:
        return score([self._greedy[i] for i in ids])
      return score(self._script[ids].reshape(-1))

    return plans.Sampler(
      step=step,
      batch_size=size,
      problems=draw,
      collect=collect_rows,
      greedy=lambda problems: make_samples(problems[0].id, len(problems), 1, 0),
      score=score_rows,
    )


def problem_ids(groups):
  """Which problems the groups are of."""
  return [problem.id for problem in groups.samples.problems]
