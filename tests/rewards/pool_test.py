"""A bad row costs that row; processes never outlive their pool."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrl_llm.rewards import pool as pools
from jaxrl_llm.rewards import scored as scoring

FILE = '''
import os
import re
import sys
import time

def obey(prompts, completions, answers):
  """Does what the completion says."""
  text = completions[0]
  if text == "hang":
    time.sleep(60)
  if text == "regex":  # holds the interpreter's lock
    re.match("(a+)+$", "a" * 60 + "b")
  if text == "die":
    os._exit(3)
  if text == "kill":
    os.kill(os.getpid(), 9)
  if text == "exit":
    sys.exit(1)
  if text == "raise":
    raise KeyError("two\\nlines")
  if text == "shape":
    return 1.0
  return {"nan": [float("nan")], "inf": [float("inf")], "none": [None]}.get(
      text, [float(len(text))] * len(completions))

def parts(prompts, completions, answers):
  n = len(completions)
  return {"long": [1.0 * len(c) for c in completions], "half": [0.5] * n}

def more(prompts, completions, answers):
  return {"long": [7.0] * len(completions)}

def always_dies(prompts, completions, answers):
  os._exit(1)

def always_hangs(prompts, completions, answers):
  time.sleep(60)

def pid(prompts, completions, answers):
  time.sleep(0.01)
  return [float(os.getpid())] * len(completions)

def sees_jax(prompts, completions, answers):
  return [float("jax" in sys.modules)] * len(completions)

def scalar(prompts, completions, answers):
  return 1.0

def table(prompts, completions, answers):
  return [[1.0]] * len(completions)

def short(prompts, completions, answers):
  return {"a": [1.0]}

def words(prompts, completions, answers):
  return ["good"] * len(completions)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("rewards") / "mine.py"
  path.write_text(FILE)
  return path


def score(pool, completions, answer="7"):
  n = len(completions)
  return pool.score([""] * n, completions, [answer] * n)


def ended(pid):
  """Whether a process ends within five seconds."""
  for _ in range(100):
    try:
      os.kill(int(pid), 0)
    except ProcessLookupError:
      return True
    time.sleep(0.05)
  return False


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_rows_come_back_in_order_whatever_the_workers(file, workers):
  texts = ["x" * (i % 13) for i in range(200)]
  with pools.RewardPool([f"{file}:obey"], workers=workers) as pool:
    scored = score(pool, texts)
  np.testing.assert_array_equal(scored.rewards, [i % 13 for i in range(200)])
  assert scored.rewards.dtype == np.float32
  assert not any(scored.failures.values()) and not scored.messages


def test_no_rows_are_no_error(file):
  with pools.RewardPool(["exact_integer"], workers=1) as pool:
    assert score(pool, []).rewards.shape == (0,)


def test_each_kind_of_failure_costs_its_row_and_is_counted(file):
  texts = ["ok", "hang", "raise", "ok", "die", "nan", "kill", "regex", "inf"]
  texts += ["exit", "shape", "ok", "okay"]
  names = ["exact_integer", f"{file}:obey"]
  with pools.RewardPool(names, timeout=0.7, workers=2) as pool:
    scored = score(pool, texts)
    again = score(pool, ["ok"] * 5)
  good = [i for i, text in enumerate(texts) if text.startswith("ok")]
  np.testing.assert_array_equal(np.flatnonzero(~np.isnan(scored.rewards)), good)
  np.testing.assert_array_equal(scored.rewards[good], [2, 2, 2, 4])
  assert scored.failures == {"exception": 3, "timeout": 2, "nan": 2, "died": 2}
  assert len(scored.messages) == scoring.MESSAGES
  assert not any("\n" in message for message in scored.messages)
  assert "row 2" in scored.messages[1] and "KeyError" in scored.messages[1]
  assert "exit code 3" in scored.messages[2]
  np.testing.assert_array_equal(again.rewards, [2] * 5)
  # the other reward of a row that failed in Python is still shown
  assert scored.components["exact_integer"][2] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_answers_none_leaves_the_row_to_the_others(file, workers):
  names = [f"{file}:obey", f"{file}:parts"]
  with pools.RewardPool(names, weights=(1, 2), workers=workers) as pool:
    scored = score(pool, ["none", "okay"])
  np.testing.assert_array_equal(scored.rewards, [2 * 4.5, 4 + 2 * 4.5])
  np.testing.assert_array_equal(scored.components["obey"], [np.nan, 4])
  assert not any(scored.failures.values())


def test_a_row_to_which_no_reward_applies_is_unscorable(file):
  with pools.RewardPool([f"{file}:obey"], workers=0) as pool:
    scored = score(pool, ["none", "ok"])
  np.testing.assert_array_equal(scored.rewards, [np.nan, 2])
  assert scored.failures["nan"] == 1
  assert "no reward applies" in scored.messages[0]


def test_without_workers_exceptions_cost_only_their_row(file):
  texts = ["ok", "raise", "nan", "exit", "okay"]
  with pools.RewardPool([f"{file}:obey"], workers=0) as pool:
    scored = score(pool, texts)
  np.testing.assert_array_equal(scored.rewards, [2, np.nan, np.nan, np.nan, 4])
  assert scored.failures == {"exception": 2, "timeout": 0, "nan": 1, "died": 0}


@pytest.mark.parametrize(
  ("function", "kind"), [("always_dies", "died"), ("always_hangs", "timeout")]
)
def test_a_function_that_never_works_comes_to_an_end(file, function, kind):
  names = [f"{file}:{function}"]
  with pools.RewardPool(names, timeout=0.2, workers=2) as pool:
    scored = score(pool, ["a"] * 5)
  assert np.isnan(scored.rewards).all()
  assert scored.failures[kind] == 5


def test_a_wrong_answer_for_the_reward_is_a_failure_not_a_crash():
  with pools.RewardPool(["exact_integer"], workers=1) as pool:
    scored = score(pool, ["7"], answer="seven")
  assert scored.failures["exception"] == 1
  assert "answer must be an integer" in scored.messages[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_components_and_weights(file, workers):
  names = ["exact_integer", f"{file}:parts", f"{file}:more"]
  with pools.RewardPool(names, weights=(2, 1, -1), workers=workers) as pool:
    scored = score(pool, ["7", "12"])
  parts = scored.components
  np.testing.assert_array_equal(parts["exact_integer"], [1, 0])
  np.testing.assert_array_equal(parts["long"], [1, 2])
  np.testing.assert_array_equal(parts["half"], [0.5, 0.5])
  np.testing.assert_array_equal(parts["parts"], [1.5, 2.5])
  np.testing.assert_array_equal(parts["more/long"], [7, 7])
  np.testing.assert_array_equal(scored.rewards, [2 + 1.5 - 7, 2.5 - 7])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("{file}:scalar", "got float"),
    ("{file}:table", "got list of 2 list"),
    ("{file}:short", "got {'a': list of 1 float}"),
    ("{file}:words", "got list of 2 str"),
    ("{file}:few", "has no function 'few'"),
    ("exact", "did you mean 'exact_integer'"),
  ],
)
def test_a_bad_reward_is_refused_at_construction(file, name, message, workers):
  with pytest.raises((ValueError, TypeError)) as caught:
    pools.RewardPool([name.format(file=file)], workers=workers)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"names": []}, "at least one of exact_integer"),
    ({"weights": (1, 2)}, "2 values for 1 rewards"),
    ({"names": ["math", "math"]}, "reward 'math' is named twice"),
    ({"timeout": 0}, "reward_timeout must be positive"),
    ({"workers": -1}, "reward_workers must be 0 or more"),
  ],
)
def test_bad_arguments_give_one_line(arguments, message):
  with pytest.raises(ValueError, match=message):
    pools.RewardPool(**({"names": ["math"]} | arguments))


def test_unequal_lengths_and_a_closed_pool_are_refused():
  pool = pools.RewardPool(["exact_integer"], workers=0)
  with pytest.raises(ValueError, match="one length, got 1, 2, 1"):
    pool.score([""], ["", ""], [""])
  pool.close()
  with pytest.raises(RuntimeError, match="closed"):
    score(pool, ["7"])


def test_workers_share_the_rows_and_ignore_interrupts(file):
  with pools.RewardPool([f"{file}:pid"], workers=2) as pool:
    score(pool, ["a"] * 40)
    pids = set(score(pool, ["a"] * 40).rewards)
    assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
      os.kill(int(pid), signal.SIGINT)
    assert set(score(pool, ["a"] * 40).rewards) == pids
    for pid in pids:  # ended while idle: replaced, and no row pays
      os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.2)
    assert not any(score(pool, ["a"] * 4).failures.values())
  assert all(map(ended, pids))


def test_an_interrupt_while_scoring_leaves_a_usable_pool(file, monkeypatch):
  def interrupt(*arguments):
    raise KeyboardInterrupt

  with pools.RewardPool([f"{file}:obey"], workers=2) as pool:
    score(pool, ["a"])
    with monkeypatch.context() as patched:
      patched.setattr(pools.connections, "wait", interrupt)
      with pytest.raises(KeyboardInterrupt):
        score(pool, ["hang"] * 4)
    np.testing.assert_array_equal(score(pool, ["a", "bb"]).rewards, [1, 2])


def test_workers_do_not_import_jax(file):
  with pools.RewardPool([f"{file}:sees_jax"], workers=1) as pool:
    assert score(pool, ["a"]).rewards[0] == 0


@pytest.mark.parametrize("ending", ["pass", "1 / 0", "os.kill(os.getpid(), 9)"])
def test_no_process_survives_its_parent(file, tmp_path, ending):
  """The script has no main guard: it must not be imported by workers."""
  script = tmp_path / "script.py"
  script.write_text(
    "import os\n"
    "from jaxrl_llm.rewards import pool\n"
    f"made = pool.RewardPool(['{file}:pid'], workers=2)\n"
    "n = 40\n"
    "rows = made.score([''] * n, ['a'] * n, [''] * n).rewards\n"
    "print(*sorted({int(pid) for pid in rows}), flush=True)\n"
    f"{ending}\n"
  )
  out = subprocess.run(
    [sys.executable, str(script)], capture_output=True, text=True
  )
  lines = out.stdout.splitlines()
  assert len(lines) == 1, out
  assert all(map(ended, lines[0].split()))


def test_a_cheap_reward_costs_well_under_a_millisecond_a_row():
  with pools.RewardPool(["exact_integer"], workers=2) as pool:
    score(pool, ["7"] * 10)
    seconds = []
    for _ in range(3):
      start = time.perf_counter()
      score(pool, ["7"] * 1000)
      seconds.append(time.perf_counter() - start)
  assert min(seconds) < 1.0
