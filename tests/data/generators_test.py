"""Generated problems: exact, repeatable, and never shared by the splits."""

import re

import pytest

from jaxrl_llm.data import generators, sources
from jaxrl_llm.rewards import countdown

NAMES = sorted(generators.GENERATORS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_problem(name, digits, seed):
  size = 60 if digits == 1 else 3000
  train = sources.load(name, digits=digits, size=size, seed=seed)
  test = sources.load(name, split="test", digits=digits, seed=seed)
  prompts = {problem.prompt for problem in train}
  assert len(train) == len(prompts) == size
  assert len(test) == len({problem.prompt for problem in test}) > 0
  assert not prompts & {problem.prompt for problem in test}


@pytest.mark.parametrize("name", NAMES)
def test_equal_arguments_give_equal_problems(name):
  assert sources.load(name, seed=3) == sources.load(name, seed=3)
  assert sources.load(name, seed=3) != sources.load(name, seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_the_test_split_depends_on_neither_seed_nor_size(name):
  one = sources.load(name, split="test", seed=0, size=10)
  assert one == sources.load(name, split="test", seed=7, size=2000)


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_training_split_keeps_ids_unique(name):
  problems = sources.load(name, size=500)
  assert [problem.id for problem in problems] == list(range(500))
  assert problems[7] == problems[:8][-1]


@pytest.mark.parametrize("digits", [1, 2, 4])
@pytest.mark.parametrize(
  ("name", "sign", "shots"),
  [
    ("addition", "+", "3 + 4 = 7\n21 + 15 = 36\n"),
    ("multiplication", "*", "3 * 4 = 12\n21 * 15 = 315\n"),
  ],
)
def test_prompts_have_the_documented_form(name, sign, shots, digits):
  low, high = 10 ** (digits - 1), 10**digits - 1
  for few_shot in (True, False):
    problems = sources.load(name, digits=digits, size=50, few_shot=few_shot)
    for problem in problems:
      assert problem.prompt.startswith(shots if few_shot else "")
      question = problem.prompt.removeprefix(shots)
      x, y = re.fullmatch(rf"(\d+) \{sign} (\d+) =", question).groups()
      assert low <= int(x) <= high and low <= int(y) <= high
      expected = int(x) + int(y) if sign == "+" else int(x) * int(y)
      assert problem.answer == str(expected)


def test_two_digit_sums_cover_the_whole_range():
  problems = sources.load("addition", few_shot=False, size=7100)
  numbers = {int(problem.prompt.split()[0]) for problem in problems}
  assert numbers == set(range(10, 100))


def test_the_first_problems_are_those_of_the_published_runs():
  train = sources.load("addition", few_shot=False, size=4000, seed=0)
  test = sources.load("addition", few_shot=False, split="test")
  assert train[0].prompt == "96 + 53 =" and train[0].answer == "149"
  assert test[0].prompt == "83 + 93 =" and test[0].answer == "176"


def _reachable(numbers, target):
  """Whether some expression over all numbers reaches the target."""
  if len(numbers) == 1:
    return abs(numbers[0] - target) < 1e-9
  for i, left in enumerate(numbers):
    for j, right in enumerate(numbers):
      if i == j:
        continue
      rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
      results = [left + right, left - right, left * right]
      results += [left / right] if right else []
      if any(_reachable([*rest, result], target) for result in results):
        return True
  return False


def test_countdown_problems_have_a_solution():
  for problem in sources.load("countdown", size=60):
    target, numbers = problem.answer.split(": ")
    assert _reachable(list(map(int, numbers.split())), int(target))
    assert problem.prompt.endswith(f"Numbers {numbers}, target {target}:")


def test_countdown_answers_suit_the_verifier():
  problem = sources.load("countdown", size=1)[0]
  reward = countdown.countdown([""], ["1 + 1"], [problem.answer])
  assert reward == [0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"digits": 0}, "data.digits must be 1 to 9, got 0"),
    ({"digits": 10}, "data.digits must be 1 to 9, got 10"),
    ({"size": 0}, "data.size must be at least 1, got 0"),
    ({"size": 7101}, "7100 different training problems"),
    ({"digits": 1, "size": 66}, "set data.size to at most 65"),
    ({"split": "dev"}, "legal are train, test"),
    ({"path": "somewhere"}, "data.path is 'somewhere'"),
  ],
)
def test_bad_arguments_give_one_line(arguments, message):
  with pytest.raises(ValueError, match=message) as caught:
    sources.load("addition", **arguments)
  assert "\n" not in str(caught.value)


def test_a_countdown_space_that_is_too_small_is_named():
  with pytest.raises(ValueError, match="countdown with data.digits 1 has"):
    sources.load("countdown", digits=1, size=10**5)
