"""Dynamic sampling: what has a signal, refill, surplus, what is not found."""

from absl.testing import parameterized
import chex
import numpy as np
from scripted_sampler import Data, problem_ids

from jaxrl_llm import types
from jaxrl_llm.rollout import dynamic_sampling as dynamic
from jaxrl_llm.rollout import groups as grouping
from jaxrl_llm.rollout import plans

NAN = np.nan
MIXED, ONES, ZEROS = [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]
EXAMPLE = np.array([ONES, MIXED, ZEROS, [1.0, 0.0]])  # the spec's


def _steps(script, count, *, batch_size=2, **knobs):
  """What `count` steps are given, and their metrics."""
  plan = dynamic.dynamic_sampling(**knobs)
  data, state = Data(script, batch_size=batch_size), plan.init()
  out = []
  for step in range(count):
    found, state, metrics = plan.gather(data.sampler(step), state)
    counts = {k.removeprefix("plan/"): int(v) for k, v in metrics.items()}
    out.append((found, counts))
  return out


class HasSignalTest(chex.TestCase):
  def test_the_worked_example(self):
    np.testing.assert_array_equal(
      dynamic.has_signal(EXAMPLE), [False, True, False, True]
    )

  @parameterized.parameters(0.0, 0.1, 0.9, -3.3, 1000.7, 1e-30, 1e30)
  def test_equal_values_have_none_whatever_they_are(self, constant):
    values = np.full((2, 8), constant, np.float32)
    self.assertFalse(dynamic.has_signal(values).any())

  def test_a_difference_of_one_bit_is_one(self):
    values = np.full((1, 4), 1.0, np.float32)
    values[0, 2] = np.nextafter(np.float32(1), np.float32(2))
    self.assertTrue(dynamic.has_signal(values).all())
    self.assertFalse(dynamic.has_signal(values, min_std=1e-6).any())

  def test_unscorable_rows_are_not_looked_at(self):
    values = np.array(
      [[1, NAN, 1], [1, NAN, 0], [NAN, NAN, NAN], [1, NAN, NAN]]
    )
    np.testing.assert_array_equal(
      dynamic.has_signal(values), [False, True, False, False]
    )

  def test_bounds_of_the_mean_are_exclusive(self):
    values = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1.0]])
    np.testing.assert_array_equal(
      dynamic.has_signal(values, low=0.25, high=0.75), [False, True, False]
    )
    np.testing.assert_array_equal(
      dynamic.has_signal(values, low=0.2, high=0.75), [True, True, False]
    )

  def test_between_0_and_1_is_the_same_rule_for_right_and_wrong(self):
    """OpenRLHF's (0, 1) and verl's std > 0 agree on accuracies."""
    values = np.random.default_rng(0).integers(0, 2, (64, 3)).astype(float)
    np.testing.assert_array_equal(
      dynamic.has_signal(values),
      dynamic.has_signal(values, low=0.0, high=1.0),
    )

  def test_a_group_of_one_is_kept_if_it_was_scored(self):
    np.testing.assert_array_equal(
      dynamic.has_signal(np.array([[1.0], [0.0], [NAN]])), [True, True, False]
    )
    np.testing.assert_array_equal(
      dynamic.has_signal(np.array([[1.0], [0.5]]), high=1.0), [False, True]
    )


class DynamicSamplingTest(chex.TestCase):
  def test_the_worked_example_takes_group_1_and_keeps_group_3(self):
    whole = Data(EXAMPLE, batch_size=4).sampler(0)
    four = types.Plan(dict, lambda sampler, state: (whole.sample(), state, {}))
    plan = dynamic.dynamic_sampling(four)
    one = Data(EXAMPLE, batch_size=1)
    found, state, metrics = plan.gather(one.sampler(0), plan.init())
    self.assertEqual(problem_ids(found), [1])
    surplus = grouping.unpack(state["surplus"])
    self.assertEqual(problem_ids(surplus), [3])
    self.assertEqual(metrics["plan/kept"], 2)
    self.assertEqual(metrics["plan/dropped"], 2)
    found, state, metrics = plan.gather(one.sampler(1), state)
    self.assertEqual(problem_ids(found), [3])
    self.assertEqual((metrics["plan/stale"], metrics["plan/rounds"]), (1, 0))
    self.assertIsNone(state["surplus"])

  def test_rounds_go_on_until_the_batch_is_whole(self):
    script = [ONES, MIXED, ZEROS, ONES, MIXED, MIXED]
    ((found, counts),) = _steps(script, 1)
    self.assertEqual(problem_ids(found), [1, 4])
    self.assertTrue(dynamic.has_signal(found.rewards.reshape(2, 2)).all())
    self.assertEqual(
      counts,
      dict(rounds=3, kept=3, stale=0, padded=0, surplus=1, dropped=3),
    )

  def test_the_surplus_comes_first_in_the_next_step_and_is_marked(self):
    script = [ONES, MIXED, MIXED, MIXED, ONES, MIXED]
    (_, before), (found, counts) = _steps(script, 2)
    self.assertEqual(before["surplus"], 1)
    self.assertEqual(problem_ids(found), [3, 5])
    np.testing.assert_array_equal(found.version, [0, 1])
    np.testing.assert_array_equal(found.extras["stale"], [1, 1, 0, 0])
    np.testing.assert_array_equal(found.weights, 1.0)
    self.assertEqual((counts["stale"], counts["rounds"]), (1, 1))

  def test_no_group_is_trained_on_twice_or_lost(self):
    rng = np.random.default_rng(1)
    script = rng.integers(0, 2, (400, 2)).astype(float)
    steps = _steps(script, 12, batch_size=5)
    used = [i for found, _ in steps for i in problem_ids(found)]
    self.assertLen(set(used), 60)
    self.assertTrue((np.ptp(script[used], axis=1) > 0).all())
    drawn = 5 * sum(counts["rounds"] for _, counts in steps)
    signal = int((np.ptp(script[:drawn], axis=1) > 0).sum())
    self.assertEqual(signal, 60 + steps[-1][1]["surplus"])

  def test_a_surplus_that_is_too_old_is_dropped(self):
    plan = dynamic.dynamic_sampling(max_age=1)
    data = Data([ONES, MIXED, MIXED, MIXED, MIXED, MIXED])
    _, state, _ = plan.gather(data.sampler(0), plan.init())
    self.assertIsNotNone(state["surplus"])
    found, _, metrics = plan.gather(data.sampler(2), state)
    self.assertEqual(problem_ids(found), [4, 5])
    self.assertEqual(metrics["plan/dropped"], 1)
    self.assertEqual(metrics["plan/stale"], 0)

  def test_at_age_0_the_surplus_is_thrown_away_as_in_verl(self):
    script = [ONES, MIXED, MIXED, MIXED, ONES, MIXED, MIXED, MIXED]
    (found, counts), (after, _) = _steps(script, 2, max_age=0)
    self.assertEqual((counts["surplus"], counts["dropped"]), (0, 2))
    self.assertEqual(problem_ids(after), [5, 6])
    self.assertNotIn("stale", found.extras)
    self.assertEqual(dynamic.dynamic_sampling(max_age=0).extras, {})

  def test_what_is_not_found_is_padding_of_weight_0(self):
    script = [ONES, MIXED, ZEROS, ONES, ONES, ONES]
    ((found, counts),) = _steps(script, 1, max_rounds=2)
    self.assertLen(found, 2)
    self.assertEqual(problem_ids(found)[0], 1)
    np.testing.assert_array_equal(found.weights, [1, 1, 0, 0])
    np.testing.assert_array_equal(found.rollout().weights, [1, 1, 0, 0])
    self.assertEqual(
      counts,
      dict(rounds=2, kept=1, stale=0, padded=1, surplus=0, dropped=3),
    )

  def test_nothing_at_all_is_a_batch_of_weight_0(self):
    ((found, counts),) = _steps([ONES] * 4, 1, max_rounds=2)
    self.assertLen(found, 2)
    np.testing.assert_array_equal(found.weights, 0.0)
    self.assertEqual((counts["padded"], counts["kept"]), (2, 0))

  def test_shapes_and_names_never_change(self):
    script = np.random.default_rng(2).integers(0, 2, (200, 2)).astype(float)
    shapes = {
      str(_shapes(found.rollout()))
      for found, _ in _steps(script, 10, batch_size=4, max_rounds=2)
    }
    self.assertLen(shapes, 1)

  def test_accuracy_looks_at_the_first_reward_only(self):
    script = [[0.25, 0.5], [0.25, 1.5], [1.25, 1.5], [0.5, 1.25]]
    ((by_reward, _),) = _steps(script, 1)
    self.assertEqual(problem_ids(by_reward), [0, 1])
    ((by_accuracy, _),) = _steps(script, 1, metric="accuracy")
    self.assertEqual(problem_ids(by_accuracy), [1, 3])

  def test_rows_that_an_inner_plan_left_out_are_no_signal(self):
    data = Data([MIXED, MIXED, MIXED, MIXED], greedy=[NAN, 1.0, 0.0, NAN])
    plan = dynamic.dynamic_sampling(plans.greedy_baseline())
    found, _, metrics = plan.gather(data.sampler(0), plan.init())
    self.assertEqual(problem_ids(found), [1, 2])
    np.testing.assert_array_equal(found.extras["greedy_rewards"], [1, 1, 0, 0])
    self.assertEqual(tuple(plan.extras), ("greedy_rewards", "stale"))
    self.assertEqual(metrics["plan/greedy_reward"], 0.5)

  def test_it_goes_on_from_a_saved_state_as_if_never_stopped(self):
    script = np.random.default_rng(3).integers(0, 2, (100, 2)).astype(float)
    plan = dynamic.dynamic_sampling()
    data, state = Data(script, batch_size=3), plan.init()
    waited = 0
    for step in range(8):
      copy, other = Data(script, batch_size=3), _copied(state)
      copy.next = data.next
      one, state, counts = plan.gather(data.sampler(step), state)
      two, other, _ = plan.gather(copy.sampler(step), other)
      chex.assert_trees_all_equal(grouping.pack(one), grouping.pack(two))
      chex.assert_trees_all_equal(state, other)
      waited += counts["plan/stale"]
    self.assertGreater(waited, 0)


def _shapes(tree):
  """Shapes and dtypes of all arrays, by their names."""
  extras = {k: (v.shape, v.dtype) for k, v in sorted(tree.extras.items())}
  names = ("completions", "mask", "old_logprobs", "rewards", "weights")
  return [
    (getattr(tree, n).shape, getattr(tree, n).dtype) for n in names
  ], extras


def _copied(state):
  """What a checkpoint gives back: equal, and nothing of the same memory."""
  if isinstance(state, dict):
    return {k: _copied(v) for k, v in state.items()}
  if isinstance(state, list):
    return [_copied(v) for v in state]
  return state.copy() if isinstance(state, np.ndarray) else state
