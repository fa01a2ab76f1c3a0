"""Imports point downward only: the rooms of docs and what may open onto what.

types <- parts <- methods <- training <- cli; testing stands on everything
below training; pallas_kernels knows jax and nothing of this project.
"""

import ast
from collections.abc import Iterator
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PARTS = (
  "advantages objectives transforms rewards rollout models optimizers data"
  " distributed"
).split()
RANK = {
  "types": 0,
  "heap": 0,
  "arguments": 0,
  **dict.fromkeys(PARTS, 1),
  "methods": 2,
  "testing": 3,
  "training": 4,
  "cli_config": 5,
  "cli_forecast": 6,
  "cli": 7,
  "__main__": 8,
}
FAMILY_FILES = ("llama", "gemma")


def _files(package: str) -> list[pathlib.Path]:
  return sorted((ROOT / package).rglob("*.py"))


def _imports(path: pathlib.Path) -> Iterator[str]:
  """Every module that a file imports, as a dotted name; relative ones fail."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively (line {node.lineno})"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(parts: tuple[str, ...]) -> str:
  return parts[1].removesuffix(".py")


def _named(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", _files("jaxrl_llm"), ids=_named)
def test_imports_point_downward(path):
  here = _room(path.relative_to(ROOT).parts)
  if here == "__init__":
    return
  assert here in RANK, f"{here} is a room that this test does not know"
  for name in _imports(path):
    parts = tuple(name.split("."))
    assert parts[0] not in ("tests", "configs", "scripts"), name
    if parts[0] != "jaxrl_llm" or len(parts) < 2:
      continue
    there = _room(parts)
    inside = here == there or here in PARTS and there in PARTS
    assert inside or RANK[there] < RANK[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", _files("jaxrl_llm"), ids=_named)
def test_product_code_does_not_stand_on_fakes(path):
  if path.relative_to(ROOT).parts[1] == "testing":
    return
  for name in _imports(path):
    assert not name.startswith("jaxrl_llm.testing"), name


@pytest.mark.parametrize("path", _files("jaxrl_llm"), ids=_named)
def test_only_models_imports_a_family(path):
  if path.relative_to(ROOT).parts[1] == "models":
    return
  for name in _imports(path):
    for family in FAMILY_FILES:
      assert not name.startswith(f"jaxrl_llm.models.{family}"), name


@pytest.mark.parametrize("path", _files("jaxrl_llm"), ids=_named)
def test_the_command_line_library_stays_with_the_command_line(path):
  if path.name in ("cli.py", "cli_forecast.py", "arguments.py"):
    return
  assert "tyro" not in {name.split(".")[0] for name in _imports(path)}


@pytest.mark.parametrize("path", _files("pallas_kernels"), ids=_named)
def test_kernels_depend_on_jax_only(path):
  # Where jax is, NumPy is.
  allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
  for name in _imports(path):
    assert name.split(".")[0] in allowed, name


@pytest.mark.parametrize(
  "path", _files("jaxrl_llm") + _files("pallas_kernels"), ids=_named
)
def test_no_file_is_a_drawer(path):
  drawers = {"utils", "common", "helpers", "core", "manager", "misc"}
  assert path.stem not in drawers and path.parent.name not in drawers


def test_the_package_imports_without_the_heavy_frameworks():
  code = (
    "import sys, jaxrl_llm, jaxrl_llm.methods;"
    "heavy = {'torch', 'tensorflow', 'vllm', 'tyro', 'transformers'};"
    "print(sorted(heavy & set(sys.modules)))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == "[]", out.stdout


def test_test_files_have_names_of_their_own():
  # pytest imports them by their names alone, and leaves out a second one.
  names = [path.name for path in (ROOT / "tests").rglob("*_test.py")]
  assert sorted(set(names)) == sorted(names)
