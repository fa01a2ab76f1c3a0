"""Arithmetic problems made by the program: endless, exact, without downloads.

The test split is the same for every seed and shares no problem with any
training split.
"""

from collections.abc import Callable, Iterator
import random

from jaxrl_llm.data import sources

# Problems held out, at most; small spaces give a fifth of theirs.
HELD_OUT = 1000

MAX_DIGITS = 9

# Countdown: how many numbers a problem has, and draws without a new problem
# after which a space counts as used up.
_COUNTS = (3, 4)
_PATIENCE = 300

_SHOTS = {
  "addition": "3 + 4 = 7\n21 + 15 = 36\n",
  "multiplication": "3 * 4 = 12\n21 * 15 = 315\n",
  "countdown": (
    "Numbers 2 3 5, target 16: (3 + 5) * 2 = 16\n"
    "Numbers 4 8 6 1, target 27: 4 * 8 - 6 + 1 = 27\n"
  ),
}


def generate(
  name: str,
  *,
  split: str,
  digits: int,
  few_shot: bool,
  size: int,
  seed: int,
) -> list[sources.Problem]:
  """Problems of a generator.

  Args:
    name: a key of GENERATORS.
    split: "train" or "test".
    digits: decimal digits of each number, 1 to 9: 2 means 10 to 99. Countdown:
      at most this many, 2 means 1 to 99.
    few_shot: whether two solved examples come before the question.
    size: length of the training split; the test split has 1000 problems, or a
      fifth of all there are.
    seed: of the training split.

  Raises:
    ValueError: an argument is out of range, or there are fewer problems.
  """
  sources.check_split(split, ("train", "test"), source=name)
  if not 1 <= digits <= MAX_DIGITS:
    raise ValueError(f"data.digits must be 1 to {MAX_DIGITS}, got {digits}.")
  if size < 1:
    raise ValueError(f"data.size must be at least 1, got {size}.")
  shots = _SHOTS[name] if few_shot else ""
  # As the shots write it; countdown's answer is what is asked, no solution.
  solution = "" if name == "countdown" else " {}"
  questions = GENERATORS[name](split, digits, size, seed)
  return [
    sources.Problem(i, shots + prompt, answer, solution.format(answer))
    for i, (prompt, answer) in enumerate(questions)
  ]


def _addition(
  split: str, digits: int, size: int, seed: int
) -> list[tuple[str, str]]:
  """Prompt "{x} + {y} =", answer x + y."""
  pairs = _pairs("addition", split, digits, size, seed)
  return [(f"{x} + {y} =", str(x + y)) for x, y in pairs]


def _multiplication(
  split: str, digits: int, size: int, seed: int
) -> list[tuple[str, str]]:
  """Prompt "{x} * {y} =", answer x y."""
  pairs = _pairs("multiplication", split, digits, size, seed)
  return [(f"{x} * {y} =", str(x * y)) for x, y in pairs]


def _pairs(
  name: str, split: str, digits: int, size: int, seed: int
) -> list[tuple[int, int]]:
  """Different ordered pairs of numbers with exactly `digits` digits."""
  low = 10 ** (digits - 1)
  side = 9 * low
  space = side * side
  held = min(HELD_OUT, space // 5)
  test = random.Random(f"{name} test").sample(range(space), held)
  if split == "test":
    codes = test
  else:
    _check_size(name, size, space - held, digits)
    drawn = random.Random(f"{name} train {seed}").sample(
      range(space), min(space, size + held)
    )
    hidden = set(test)
    codes = [code for code in drawn if code not in hidden][:size]
  return [(low + code // side, low + code % side) for code in codes]


def _countdown(
  split: str, digits: int, size: int, seed: int
) -> list[tuple[str, str]]:
  """Prompt with numbers and target; the reward countdown reads the answer."""
  test = _different(_draws("countdown test", digits), HELD_OUT, set())
  if split == "test":
    chosen = test
  else:
    stream = _draws(f"countdown train {seed}", digits)
    chosen = _different(stream, size, set(map(_content, test)))
    _check_size("countdown", size, len(chosen), digits)
  return [
    (
      f"Numbers {' '.join(map(str, numbers))}, target {target}:",
      f"{target}: {' '.join(map(str, numbers))}",
    )
    for numbers, target in chosen
  ]


Puzzle = tuple[tuple[int, ...], int]


def _draws(seed: str, digits: int) -> Iterator[Puzzle]:
  """Endless solvable puzzles."""
  rng = random.Random(seed)
  limit = 10**digits
  while True:
    numbers = [rng.randrange(1, limit) for _ in range(rng.choice(_COUNTS))]
    target = numbers[0]
    for number in numbers[1:]:
      target = rng.choice(_results(target, number))
    if 1 <= target <= 10 * limit and target not in numbers:
      rng.shuffle(numbers)
      yield tuple(numbers), target


def _results(left: int, right: int) -> list[int]:
  """Whole, positive results of the four operations."""
  results = [left + right, left * right]
  if left > right:
    results.append(left - right)
  if left % right == 0:
    results.append(left // right)
  return results


def _different(
  stream: Iterator[Puzzle], count: int, hidden: set[Puzzle]
) -> list[Puzzle]:
  """First `count` puzzles that differ in content; fewer if none come."""
  chosen, seen, misses = [], set(hidden), 0
  while len(chosen) < count and misses < _PATIENCE:
    puzzle = next(stream)
    if _content(puzzle) in seen:
      misses += 1
      continue
    misses = 0
    seen.add(_content(puzzle))
    chosen.append(puzzle)
  return chosen


def _content(puzzle: Puzzle) -> Puzzle:
  """Equal for puzzles that differ in the order of their numbers only."""
  return tuple(sorted(puzzle[0])), puzzle[1]


def _check_size(name: str, size: int, available: int, digits: int) -> None:
  if size > available:
    raise ValueError(
      f"data.size is {size}, but {name} with data.digits {digits} has"
      f" {available} different training problems; set data.size to at most"
      f" {available}, or raise data.digits."
    )


GENERATORS: dict[str, Callable[[str, int, int, int], list[tuple[str, str]]]] = {
  "addition": _addition,
  "multiplication": _multiplication,
  "countdown": _countdown,
}
