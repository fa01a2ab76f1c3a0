"""The sampler of a step, one round, the greedy baseline."""

import numpy as np
import pytest
from scripted_sampler import Data, problem_ids

from jaxrl_llm import types
from jaxrl_llm.rollout import dynamic_sampling, plans


def test_rows_are_numbered_on_from_round_to_round():
  """Contract 2: the noise of a token is a function of its row's id."""
  sampler = Data(np.ones((6, 2))).sampler(0)
  ids = [sampler.sample().samples.generation.completions[:, 1] for _ in "abc"]
  np.testing.assert_array_equal(np.concatenate(ids), np.arange(12))


def test_what_was_seen_is_every_round():
  rewards = [[1, 0], [0, 0], [1, np.nan], [1, 1]]
  sampler = Data(rewards).sampler(0)
  sampler.sample(), sampler.sample()
  samples, scored = sampler.seen()
  assert [p.id for p in samples.problems] == [0, 1, 2, 3]
  np.testing.assert_array_equal(scored.rewards, np.ravel(rewards))
  assert scored.failures == {"nan": 1} and len(scored.messages) == 1
  assert len(samples.texts) == 8


def test_one_round_is_what_was_sampled():
  plan = plans.one_round()
  found, state, metrics = plan.gather(Data(np.eye(2)).sampler(3), plan.init())
  assert problem_ids(found) == [0, 1] and state == {} and metrics == {}
  np.testing.assert_array_equal(found.version, [3, 3])
  np.testing.assert_array_equal(found.weights, 1.0)
  assert plan.extras == {}


def test_the_greedy_reward_stands_beside_each_row_of_its_prompt():
  data = Data([[1, 0], [0.5, 1], [1, 1]], batch_size=3, greedy=[0.5, -1, 0])
  plan = plans.greedy_baseline()
  found, _, metrics = plan.gather(data.sampler(0), plan.init())
  np.testing.assert_array_equal(
    found.extras["greedy_rewards"], [0.5, 0.5, -1, -1, 0, 0]
  )
  assert tuple(plan.extras) == ("greedy_rewards",)
  assert found.extras["greedy_rewards"].dtype == np.float32
  np.testing.assert_allclose(metrics["plan/greedy_reward"], -1 / 6, rtol=1e-6)


def test_without_a_greedy_reward_the_prompt_is_left_out():
  data = Data([[1, 0], [0.5, 1]], greedy=[np.nan, 1.0])
  found, _, metrics = plans.greedy_baseline().gather(data.sampler(0), {})
  np.testing.assert_array_equal(found.weights, [0, 0, 1, 1])
  np.testing.assert_array_equal(found.extras["greedy_rewards"], [0, 0, 1, 1])
  assert metrics["plan/greedy_reward"] == 1.0
  nothing = Data([[1, 0], [0.5, 1]], greedy=[np.nan, np.nan])
  _, _, metrics = plans.greedy_baseline().gather(nothing.sampler(0), {})
  assert metrics["plan/greedy_reward"] == 0.0


def test_the_greedy_completion_is_not_among_what_was_seen():
  data = Data([[1, 0], [0.5, 1]], greedy=[1, 1])
  sampler = data.sampler(0)
  plans.greedy_baseline().gather(sampler, {})
  samples, scored = sampler.seen()
  assert len(samples.texts) == len(scored.rewards) == 4


def _counting(found, state, tokenizer):
  """Extras, memory and metrics that know how often each prompt was seen."""
  assert tokenizer == "a tokenizer"
  ids = [problem.id for problem in found.samples.problems]
  seen = dict(state)
  for index in ids:
    seen[str(index)] = seen.get(str(index), 0) + 1
  rows = np.repeat([seen[str(i)] for i in ids], found.group_size)
  extras = {"times": rows.astype(np.float32)}
  return extras, seen, {"plan/known": float(len(seen))}


def test_what_is_read_from_texts_stands_in_extras_and_is_remembered():
  shapes = {"times": types.Extra()}
  plan = plans.annotated(_counting, shapes, inner=plans.greedy_baseline())
  assert tuple(plan.extras) == ("greedy_rewards", "times")
  rewards = [[1, 0], [0.5, 1]]
  state = plan.init()
  for step in range(2):
    sampler = Data(rewards, greedy=[0, 0]).sampler(step)
    sampler.tokenizer = "a tokenizer"
    found, state, metrics = plan.gather(sampler, state)
  np.testing.assert_array_equal(found.extras["times"], 2.0)
  assert found.extras["greedy_rewards"].shape == (4,)
  assert state == {"annotated": {"0": 2, "1": 2}, "inner": {}}
  assert metrics["plan/known"] == 2.0 and "plan/greedy_reward" in metrics
  assert types.Extra(("N", "T", 3), np.int32).zeros(N=4, T=2).shape == (4, 2, 3)


def test_other_texts_are_scored_with_the_prompts_of_their_rows():
  sampler = Data([[1, 0], [0.5, 1]], greedy=[0.25, 0.75]).sampler(0)
  samples = sampler.sample().samples
  asked, score = [], sampler._score
  sampler._score = lambda each: (asked.append(each), score(each))[1]
  rewards = sampler.rewards_of(samples, [0, 3, 2], ["a", "b", "c"])
  np.testing.assert_array_equal(rewards, [0.25, 0.75, 0.75])
  (seen,) = asked
  assert seen.texts == ["a", "b", "c"] and seen.group_size == 1
  assert [problem.id for problem in seen.problems] == [0, 1, 1]
  np.testing.assert_array_equal(seen.generation.completions[:, 1], [0, 3, 2])
  assert len(sampler.seen()[0].texts) == 4


def test_what_a_plan_lacks_is_asked_of_all_that_it_is_made_of():
  def fail():
    raise ValueError("a corpus is missing")

  inner = plans.annotated(_counting, {}, check=fail)
  for plan in (
    plans.greedy_baseline(inner),
    plans.annotated(_counting, {}, inner=inner),
    dynamic_sampling.dynamic_sampling(inner),
  ):
    with pytest.raises(ValueError, match="a corpus is missing"):
      plan.check()
  plans.one_round().check()
