"""Groups: taken, joined, packed; siblings and their arrays stay together."""

import json

import chex
import numpy as np
import pytest
from scripted_sampler import make_samples, problem_ids, score

from jaxrl_llm.rollout import groups


def _groups(first=0, problems=3, group_size=2, step=4, reward=1.5):
  samples = make_samples(first, problems, group_size, 10)
  rewards = reward + np.arange(problems * group_size)
  found = groups.fresh(samples, score(rewards), version=step)
  return found.replace(extras={"greedy_rewards": -found.rewards})


def test_what_is_taken_keeps_its_rows_and_its_order():
  found = groups.take(_groups(), [2, 0])
  assert problem_ids(found) == [2, 0]
  assert len(found) == 2 and found.group_size == 2
  first, ids, _ = found.samples.generation.completions.T
  np.testing.assert_array_equal(first, [2, 2, 0, 0])
  np.testing.assert_array_equal(ids, [14, 15, 10, 11])
  np.testing.assert_array_equal(found.rewards, [5.5, 6.5, 1.5, 2.5])
  np.testing.assert_array_equal(found.components["right"], [5, 6, 1, 2])
  np.testing.assert_array_equal(found.extras["greedy_rewards"], -found.rewards)
  np.testing.assert_array_equal(found.samples.prompts[:, 0], [2, 0])
  assert found.samples.texts == ["row 14", "row 15", "row 10", "row 11"]
  assert groups.take(_groups(), []) is None


def test_joining_undoes_taking():
  whole = _groups()
  parts = [groups.take(whole, [i]) for i in range(3)]
  joined = groups.join([None, *parts, None])
  chex.assert_trees_all_equal(groups.pack(joined), groups.pack(whole))
  assert groups.join([None]) is None
  assert groups.join([whole, None]) is whole


def test_a_component_that_a_round_does_not_know_is_missing_there():
  one, two = _groups(), _groups(first=3)
  two = two.replace(components={"right": two.components["right"]})
  joined = groups.join([one, two])
  assert (
    np.isnan(joined.components["rest"]).tolist() == [False] * 6 + [True] * 6
  )


def test_groups_of_another_shape_are_refused_in_one_line():
  with pytest.raises(ValueError, match="one group size.*own config") as caught:
    groups.join([_groups(), _groups(group_size=4)])
  assert "\n" not in str(caught.value)


def test_the_rollout_drops_what_has_no_reward_or_no_weight():
  found = _groups()
  rewards = found.rewards.copy()
  rewards[1] = np.nan
  weights = np.array([1, 1, 0, 0, 1, 1], np.float32)
  rollout = found.replace(rewards=rewards, weights=weights).rollout()
  np.testing.assert_array_equal(rollout.weights, [1, 0, 0, 0, 1, 1])
  np.testing.assert_array_equal(rollout.rewards, [1.5, 0, 3.5, 4.5, 5.5, 6.5])
  assert rollout.group_size == 2
  assert rollout.extras.keys() == {"behaviour_logprobs", "greedy_rewards"}


def test_packing_is_json_and_arrays_and_comes_back_whole():
  found = _groups(reward=np.nan)
  packed = groups.pack(found)
  plain = json.dumps(packed, default=lambda x: x.tolist())
  assert "q1" in plain
  again = groups.unpack(packed)
  assert again.samples.problems == found.samples.problems
  chex.assert_trees_all_equal(groups.pack(again), packed)
  assert groups.unpack(groups.pack(None)) is None
