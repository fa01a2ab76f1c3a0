"""Rewards added up."""

import numpy as np

from jaxrl_llm.rewards import scored, worker

BAD = worker.Failure("nan", "b gave nan")


def test_weights_multiply_and_failures_are_nan():
  rows = [
    worker.Row(({"": 1.0}, {"": 2.0}), None),
    worker.Row(({"": 1.0}, {"": np.nan}), BAD),
    worker.Row((), worker.Failure("died", "gone")),
  ]
  result = scored.Assembly(("a", "b"), (1.0, 0.5))(rows)
  np.testing.assert_array_equal(result.rewards, [2.0, np.nan, np.nan])
  np.testing.assert_array_equal(result.components["a"], [1.0, 1.0, np.nan])
  assert sum(result.failures.values()) == np.isnan(result.rewards).sum()
  assert result.messages == ["row 1: b gave nan", "row 2: gone"]


def test_components_keep_their_names_unless_taken():
  row = worker.Row(({"x": 1.0, "b": 2.0}, {"x": 4.0}), None)
  result = scored.Assembly(("a", "b"), (1.0, 1.0))([row])
  values = {name: float(v[0]) for name, v in result.components.items()}
  assert values == {"a": 3.0, "b": 4.0, "x": 1.0, "a/b": 2.0, "b/x": 4.0}
  assert [*values][:2] == ["a", "b"]
  assert result.rewards[0] == 7.0


def test_a_component_that_some_rows_lack_is_nan_there():
  rows = [worker.Row(({"x": 1.0},), None), worker.Row(({"y": 2.0},), None)]
  result = scored.Assembly(("a",), (1.0,))(rows)
  np.testing.assert_array_equal(result.components["x"], [1.0, np.nan])
  np.testing.assert_array_equal(result.components["y"], [np.nan, 2.0])
  np.testing.assert_array_equal(result.rewards, [1.0, 2.0])
