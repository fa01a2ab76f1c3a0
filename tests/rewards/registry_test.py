"""Rewards by name, and the one line for each wrong one."""

import subprocess
import sys

import numpy as np
import pytest

from jaxrl_llm.rewards import registry

FILE = """
import math as mathematics

def good(prompts, completions, answers):
  return [1.0] * len(completions)

def defaults(prompts, completions, answers, scale=2.0):
  return [scale] * len(completions)

def few(prompts, completions):
  return [1.0] * len(completions)

def keywords(*, prompts, completions, answers):
  return [1.0] * len(completions)

number = 3
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(FILE)
  return path


def test_every_listed_name_loads(file):
  examples = {
    "format:REGEX": "format:a+",
    "length:N:characters": "length:3:characters",
    "length:N:words": "length:3:words",
    "file.py:function": f"{file}:good",
  }
  for listed in registry.REWARDS:
    reward = registry.load(examples.get(listed, listed))
    result = reward(["p"], ["5"], ["5: 5" if listed == "countdown" else "5"])
    assert np.shape(result) == (1,), listed


def test_a_function_may_have_further_defaults(file):
  assert registry.load(f"{file}:defaults")([""], [""], [""]) == [2.0]


@pytest.mark.parametrize(
  ("name", "error", "message"),
  [
    ("exact_integr", ValueError, "did you mean 'exact_integer'"),
    ("Math", ValueError, "did you mean 'math'"),
    ("zzz", ValueError, "legal are exact_integer, math"),
    ("math:3", ValueError, "takes no argument"),
    ("format:(", ValueError, "not a regular expression"),
    ("length:5", ValueError, "must name its unit"),
    ("no_such.py:f", FileNotFoundError, "there is no file 'no_such.py'"),
    ("{file}", ValueError, "names no function"),
    ("{file}:", ValueError, "names no function"),
    ("{file}:goood", ValueError, "did you mean 'good'"),
    ("{file}:zzz", ValueError, "it has defaults, few, good, keywords"),
    ("{file}:few", TypeError, r"signature is \(prompts, completions\)"),
    ("{file}:keywords", TypeError, "must take"),
    ("{file}:number", TypeError, "must be a function.*got int"),
    ("{file}:mathematics", TypeError, "must be a function.*got module"),
  ],
)
def test_a_wrong_name_gives_one_line(file, name, error, message):
  with pytest.raises(error, match=message) as caught:
    registry.load(name.format(file=file))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("def f(:", "SyntaxError"),
    ("import no_such_module", "No module named 'no_such_module'"),
    ("raise SystemExit(3)", "SystemExit: 3"),
  ],
)
def test_a_file_that_fails_gives_one_line(tmp_path, code, message):
  (tmp_path / "broken.py").write_text(code)
  with pytest.raises(ValueError, match=message) as caught:
    registry.load(f"{tmp_path}/broken.py:f")
  assert "\n" not in str(caught.value)


def test_labels_are_short_and_distinct():
  names = ("math", "format:a", "a.py:f", "b.py:f", "a.py:g")
  assert registry.labels(names) == ("math", "format", "a.py:f", "b.py:f", "g")


def test_import_brings_neither_jax_nor_math_verify():
  code = (
    "import sys; from jaxrl_llm.rewards import pool, registry, worker;"
    "registry.check('math');"
    "print({'jax', 'flax', 'math_verify', 'sympy'} & set(sys.modules))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "set()"
