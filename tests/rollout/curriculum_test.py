"""Batches with a share of easy prompts."""

import json

import numpy as np
import pytest
from scripted_sampler import Data, problem_ids

from jaxrl_llm import types
from jaxrl_llm.rollout import curriculum

EASY, HARD, NEVER = [1, 1], [1, 0], [0, 0]


def test_kappa_follows_the_change_of_the_ratio():
  step = curriculum.next_kappa
  np.testing.assert_allclose(step(0.1, 0.7, 0.5), 0.14)
  np.testing.assert_allclose(step(0.1, 0.3, 0.5), 0.06)
  assert step(0.0, 0.3, 0.5) == 0.0
  assert step(0.9, 1.0, 0.5) == 0.95
  np.testing.assert_allclose(step(0.0, 0.3, 0.5, low=-np.inf), -0.04)
  assert step(0.2, 0.9, 0.0) == 0.2  # nothing to compare with


@pytest.mark.parametrize(
  "kappa, mixed, easy, expected",
  [
    (0.0, 10, 10, 0),
    (-0.1, 10, 10, 0),
    (0.5, 10, 20, 10),
    (0.5, 10, 3, 3),
    (0.2, 10, 20, 2),
    (0.1, 8, 20, 0),
    (0.9, 0, 20, 0),
  ],
)
def test_easy_prompts_are_let_in_by_their_share(kappa, mixed, easy, expected):
  assert curriculum.admitted(kappa, mixed, easy) == expected


def _plan(ratios=(), **knobs):
  """A plan whose label knows the ratios in advance."""
  given = iter(ratios)

  def label(found, sampler):
    del sampler
    rows = np.arange(len(found.rewards), dtype=np.float32)
    ratio = next(given, None)
    return {"row": rows}, [] if ratio is None else [ratio], {"plan/x": 1.0}

  return curriculum.plan(label, {"row": types.Extra()}, **knobs)


def _state(kappa, ratio=0.5):
  return {"kappa": kappa, "ratio": ratio, "inner": {}}


def test_without_kappa_only_mixed_prompts_are_kept():
  script = [EASY, HARD, NEVER, EASY, HARD, HARD]
  data = Data(script, batch_size=2)
  found, state, metrics = _plan().gather(data.sampler(0), _plan().init())
  assert sorted(problem_ids(found)) == [1, 4]
  assert metrics["plan/rounds"] == 3 and metrics["plan/easy"] == 0
  assert (found.weights == 1).all() and metrics["plan/padded"] == 0
  assert state == {"kappa": 0.0, "ratio": 0.5, "inner": {}}
  np.testing.assert_array_equal(found.extras["row"], np.arange(4))


def test_with_kappa_easy_ones_join_but_never_the_unsolved():
  script = [HARD, EASY, EASY, NEVER]
  data = Data(script, batch_size=4)
  found, _, metrics = _plan(max_rounds=1).gather(data.sampler(0), _state(0.5))
  assert metrics["plan/easy"] == 1 and metrics["plan/padded"] == 2
  ids, weights = problem_ids(found), found.weights[::2]
  assert 0 in ids and set(np.array(ids)[weights > 0]) in ({0, 1}, {0, 2})


def test_mixed_prompts_add_up_until_an_easy_one_may_join():
  """One mixed prompt lets in floor(0.4 / 0.6) = 0 easy ones, two let in one."""
  data = Data([HARD, EASY, NEVER, NEVER] * 3, batch_size=4)
  found, _, metrics = _plan().gather(data.sampler(0), _state(0.4))
  assert metrics["plan/rounds"] == 3 and metrics["plan/easy"] == 1
  assert problem_ids(found)[0] == 0
  assert sorted(problem_ids(found)) == [0, 4, 5, 8]


def test_a_round_that_could_let_one_in_uses_up_its_mixed_prompts():
  """The code counts anew there, whether or not there was an easy one."""
  script = [HARD, HARD, NEVER, NEVER, HARD, EASY, NEVER, NEVER, HARD]
  data = Data(script + [NEVER] * 3, batch_size=4)
  _, _, metrics = _plan().gather(data.sampler(0), _state(0.4))
  assert metrics["plan/rounds"] == 3 and metrics["plan/easy"] == 0


def test_what_is_not_found_has_weight_0():
  data = Data([NEVER, NEVER, HARD, NEVER], batch_size=2)
  found, _, metrics = _plan(max_rounds=2).gather(data.sampler(0), _state(0.5))
  assert problem_ids(found)[0] == 2 and metrics["plan/padded"] == 1
  np.testing.assert_array_equal(found.weights, [1, 1, 0, 0])


def test_a_row_that_cannot_be_scored_makes_no_difference():
  data = Data([[1, np.nan], [1, 0], [0, np.nan], [1, 1]], batch_size=4)
  _, _, metrics = _plan(max_rounds=1).gather(data.sampler(0), _state(0.9))
  assert metrics["plan/easy"] == 2 and metrics["plan/padded"] == 1


def test_the_state_is_json_and_moves_by_the_ratios():
  plan, state, seen = _plan([0.6, 0.7, None, 0.65]), _state(0.0), []
  for step in range(4):
    data = Data([HARD, HARD], batch_size=2)
    _, state, metrics = plan.gather(data.sampler(step), state)
    state = json.loads(json.dumps(state))
    seen.append(round(state["kappa"], 6))
  assert seen == [0.02, 0.04, 0.04, 0.03]
  assert metrics["plan/needed"] == 0.65 and metrics["plan/x"] == 1.0


def test_the_same_step_lets_in_the_same():
  script = [HARD] + [EASY] * 7
  ids = [
    problem_ids(_plan(max_rounds=1).gather(data.sampler(step), _state(0.7))[0])
    for data, step in ((Data(script, batch_size=8), s) for s in (3, 3, 4, 5))
  ]
  assert ids[0] == ids[1] and (ids[0] != ids[2] or ids[0] != ids[3])


def test_without_a_curriculum_every_prompt_of_one_round_is_kept():
  def label(found, sampler):
    del sampler
    return {"row": np.arange(len(found.rewards))}, [0.5, 1.0], {}

  plan = curriculum.without(label, {"row": types.Extra()})
  data = Data([EASY, HARD, NEVER], batch_size=3)
  found, state, metrics = plan.gather(data.sampler(0), plan.init())
  assert problem_ids(found) == [0, 1, 2] and state == {}
  assert metrics == {"plan/needed": 0.75}
  np.testing.assert_array_equal(found.extras["row"], np.arange(6))
