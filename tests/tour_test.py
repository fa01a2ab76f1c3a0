"""docs/tour.md does what it says."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
LENGTH, VOCABULARY, ROWS = 6, 8, 32
# Of tests/methods, those that go over the rows of METHODS.
TESTS = ("method_contract", "step_contract", "saved")


def _block(language: str) -> str:
  (text,) = re.findall(rf"```{language}\n(.*?)```", TOUR, flags=re.DOTALL)
  return text


def _sample(params, key):
  """Token by token, the first after token 0."""
  tokens = [jnp.zeros(ROWS, jnp.int32)]
  for each in jax.random.split(key, LENGTH):
    tokens.append(jax.random.categorical(each, params[tokens[-1]]))
  tokens = jnp.stack(tokens, axis=1)
  return tokens[:, :-1], tokens[:, 1:]


def test_the_ten_lines_of_a_borrower_learn():
  space = {}
  exec(compile(_block("python"), "docs/tour.md", "exec"), space)
  params = jnp.zeros((VOCABULARY, VOCABULARY))
  state = space["optimizer"].init(params)
  shares = []
  for step in range(30):
    inputs, tokens = _sample(params, jax.random.key(step))
    # What is after the end may be anything.
    mask = jnp.arange(LENGTH)[None, :] < 4 + jnp.arange(ROWS)[:, None] % 3
    rewards = ((tokens == 3) & mask).mean(axis=1)
    old = space["logprobs_of"](params, inputs, tokens)
    batch = (inputs, tokens, mask, old, rewards)
    for _ in range(2):
      params, state = space["update"](params, state, *batch)
    shares.append(float((tokens == 3).mean()))
  assert np.mean(shares[:3]) < 0.3 and np.mean(shares[-3:]) > 0.8, shares


def _apply(diff: str, root: pathlib.Path) -> list[str]:
  """Applies hunks by the lines around them; the paths that changed."""
  changed = []
  for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
    old, rest = part.split("\n+++ b/", 1)
    name, rest = rest.split("\n", 1)
    path = root / name
    text = "" if old == "/dev/null" else path.read_text()
    for hunk in rest.split("@@\n")[1:]:
      lines = hunk.splitlines(keepends=True)
      before = "".join(x[1:] for x in lines if x[0] in " -")
      after = "".join(x[1:] or "\n" for x in lines if x[0] in " +")
      assert text.count(before) == 1 or not text, f"{name}: {before!r}"
      text = text.replace(before, after, 1) if text else after
    path.write_text(text)
    changed.append(name)
  return changed


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
  """A copy of the package with the tour's method in it, and what changed."""
  root = tmp_path_factory.mktemp("tour")
  ignore = shutil.ignore_patterns("__pycache__")
  for name in ("jaxrl_llm", "pallas_kernels", "tests/methods"):
    shutil.copytree(ROOT / name, root / name, ignore=ignore)
  for name in ("tests/conftest.py", "pyproject.toml"):
    shutil.copy(ROOT / name, root / name)
  return root, _apply(_block("diff"), root)


def _python(root, *args):
  return subprocess.run(
    [sys.executable, *args],
    cwd=root,
    env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


def test_a_method_takes_one_file_and_one_row(changed):
  root, names = changed
  assert names == [
    "jaxrl_llm/methods/lite_ppo.py",
    "jaxrl_llm/methods/registry.py",
  ]
  old = (ROOT / names[1]).read_text().splitlines()
  new = (root / names[1]).read_text().splitlines()
  added = [line for line in new if line not in old]
  assert len(new) == len(old) + 2
  assert added == [
    "from jaxrl_llm.methods.lite_ppo import LitePpo",
    '  "lite_ppo": LitePpo,',
  ]


def test_the_command_line_knows_it_and_explains_it(changed):
  out = _python(changed[0], "-m", "jaxrl_llm", "methods", "lite_ppo")
  assert out.returncode == 0, out.stderr
  for words in (
    "clip(r, 0.8, 1.2) A)] / M",
    "(std + 0.0001)",
    "clip_high: TRL epsilon_high, verl clip_ratio_high",
    "arXiv:2508.08221",
  ):
    assert words in out.stdout


def test_the_tests_of_methods_find_it_and_pass(changed):
  tests = [f"tests/methods/{name}_test.py" for name in TESTS]
  out = _python(
    changed[0], "-m", "pytest", "-v", "-p", "no:cacheprovider",
    "-k", "lite_ppo", *tests,
  )  # fmt: skip
  assert out.returncode == 0, out.stdout
  count = int(re.search(r"(\d+) passed", out.stdout)[1])
  assert count >= 14, out.stdout


def test_it_is_kept_in_the_style_of_the_house(changed):
  path = changed[0] / "jaxrl_llm" / "methods" / "lite_ppo.py"
  ruff = shutil.which("ruff", path=pathlib.Path(sys.executable).parent)
  assert ruff, "ruff is missing; the extra [test] installs it"
  for command in (["check"], ["format", "--check"]):
    out = subprocess.run([ruff, *command, path], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_what_the_tour_promises_is_exported():
  from jaxrl_llm import advantages, objectives, transforms

  for package in (advantages, objectives, transforms):
    for name in package.__all__:
      assert getattr(package, name).__doc__, name
  names = set(objectives.__all__)
  folder = ROOT / "jaxrl_llm" / "objectives"
  for path in folder.glob("*.py"):
    for name in re.findall(r"^def ([a-z]\w+)\(", path.read_text(), re.M):
      if name.endswith(("_surrogate", "_log_ratio", "_mean", "_sum")):
        assert name in names, f"{path.stem}.{name} is not exported"
