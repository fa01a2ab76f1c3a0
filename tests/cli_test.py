import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from jaxrl_llm import cli, methods
import jaxrl_llm.training as training_room
from jaxrl_llm.training import experiment

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from jaxrl_llm.training import experiment

def get_config():
  return experiment.Experiment(name="mine", steps=7)
"""


class Stopped(Exception):
  signum = signal.SIGTERM


@pytest.fixture
def calls(monkeypatch):
  """Replaces the loop by one that remembers what it was asked."""
  seen = []

  def train(config, **kwargs):
    seen.append((config, kwargs))
    return pathlib.Path(config.runs) / config.name

  def evaluate(config, **kwargs):
    seen.append((config, kwargs))
    return types.SimpleNamespace(metrics={"accuracy": 0.5, "problems": 4})

  def sample(model, prompts, **kwargs):
    seen.append((model, prompts, kwargs))
    return [[" one", " two"]] * len(prompts)

  loop = types.ModuleType("jaxrl_llm.training.loop")
  loop.train, loop.Stopped = train, Stopped
  inference = types.ModuleType("jaxrl_llm.training.inference")
  inference.evaluate, inference.sample = evaluate, sample
  for module in (loop, inference):
    monkeypatch.setitem(sys.modules, module.__name__, module)
    short = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(training_room, short, module, raising=False)
  return seen


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(CONFIG)
  return str(path)


def test_overrides_reach_nested_fields_in_both_spellings(calls, config):
  code = cli.main([
      "train", config, "--steps", "3", "--data.path", "DIR",
      "--optimizer.learning-rate", "0.5", "--evaluation.sampling.stop=x",
      "--reward", "math", "a.py:f", "--no-export", "--resume",
  ])  # fmt: skip
  got, kwargs = calls[0]
  assert code == 0 and kwargs == {"resume": True, "overwrite": False}
  assert (got.name, got.steps, got.data.path) == ("mine", 3, "DIR")
  assert got.optimizer.learning_rate == 0.5
  assert got.evaluation.sampling.stop == ("x",)
  assert got.evaluation.sampling.greedy  # the rest keeps its default
  assert got.reward == ("math", "a.py:f") and got.export is False


def test_auto_resume_starts_a_run_once_and_then_resumes_it(
  calls, config, tmp_path
):
  args = ["train", config, "--runs", str(tmp_path), "--auto-resume"]
  assert cli.main(args) == 0
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "config.json").write_text("{}")
  assert cli.main(args) == 0
  assert [kwargs["resume"] for _, kwargs in calls] == [False, True]


@pytest.mark.parametrize("flag", [["--method", "dapo"], ["--method=dapo"]])
def test_method_switches_and_its_own_options_override(calls, config, flag):
  assert cli.main(["train", config, *flag, "--method.clip_high", "0.4"]) == 0
  assert calls[0][0].method == methods.Dapo(clip_high=0.4)


def test_a_bare_name_is_found_in_configs(calls, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["train", "tiny_addition", "--steps", "2"]) == 0
  assert calls[0][0].name == "tiny_addition" and calls[0][0].steps == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_every_config_is_legal_and_says_how_to_run_it(calls, path):
  assert cli.main(["train", path.stem]) == 0
  got = calls[0][0]
  experiment.validate(got)
  got.method.build()
  assert got.name == path.stem
  assert f"jaxrl train {path.stem}" in path.read_text()


def test_eval_prints_metrics(calls, config, capsys):
  assert cli.main(["eval", config, "--checkpoint", "runs/a"]) == 0
  assert calls[0][1] == {"checkpoint": "runs/a", "weights": None}
  out = capsys.readouterr().out
  assert "accuracy        0.5000" in out and "problems        4" in out


def test_sample_prints_prompt_and_completion(calls, capsys):
  args = ["sample", "tiny", "--prompt", "a", "b", "--temperature", "0.7"]
  assert cli.main([*args, "--samples", "2", "--max-new-tokens", "5"]) == 0
  model, prompts, kwargs = calls[0]
  assert (model, prompts) == ("tiny", ["a", "b"])
  assert kwargs.pop("sampling") == experiment.Sampling(temperature=0.7)
  assert kwargs == {
      "max_new_tokens": 5, "samples": 2, "seed": 0, "chat": False
  }  # fmt: skip
  assert capsys.readouterr().out == "a one\na two\nb one\nb two\n"


def test_methods_lists_all_and_explains_one(capsys):
  assert cli.main(["methods"]) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in methods.METHODS)
  assert cli.main(["methods", "dapo"]) == 0
  out = capsys.readouterr().out
  assert "clip_high = 0.28" in out and "arXiv:2503.14476" in out


def test_help_has_the_text_of_every_field(config, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["train", config, "--help"])
  out = " ".join(capsys.readouterr().out.split())
  assert stop.value.code == 0
  assert "--group-size INT" in out and "completions of each prompt" in out
  assert "(default: 7)" in out  # the config's own value


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "needs CONFIG first"),
        (["train", "--resume", "CONFIG"], "needs CONFIG first"),
        (["train", "demo_additon"], "did you mean 'demo_addition'"),
        (["train", "no_such.py"], "no config 'no_such.py'"),
        (["train", "CONFIG", "--lr", "1"], "mean --optimizer.learning-rate?"),
        (["train", "CONFIG", "--stesp", "1"], "did you mean --steps?"),
        (["train", "CONFIG", "--data.pat", "x"], "did you mean --data.path?"),
        (["train", "CONFIG", "--steps", "abc"], "--steps"),
        (["train", "CONFIG", "--steps"], "--steps"),
        (["train", "CONFIG", "--steps", "0"], "steps must be at least 1"),
        (["train", "CONFIG", "--group-size", "1"], "must be at least 2"),
        (["train", "CONFIG", "--model.dtype", "float16"], "bfloat16"),
        (["train", "CONFIG", "--method", "dappo"], "Did you mean 'dapo'"),
        (["train", "CONFIG", "--method"], "--method needs a value"),
        (["train", "CONFIG", "--sampling.top-p", "2"], "top_p must be in"),
        (["train", "CONFIG", "stray"], "stray"),
        (["eval", "CONFIG", "--checkpoint", "a", "--weights", "b"], "not both"),
        (["sample", "tiny"], "--prompt needs"),
        (["sample", "--prompt", "a"], "needs MODEL first"),
        (["sample", "tiny", "--prompt", "a", "--samples", "0"], "at least 1"),
        (["sample", "tiny", "--prompt", "a", "--temprature", "1"],
         "did you mean --temperature?"),
        (["methods", "grop"], "Did you mean 'grpo'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_two(
  calls, config, capsys, args, message
):
  code = cli.main([config if arg == "CONFIG" else arg for arg in args])
  err = capsys.readouterr().err
  assert code == 2 and not calls
  assert err.startswith("jaxrl: ") and err.count("\n") == 1
  assert message in err


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("x = 1", "has no get_config()"),
    ("def get_config():\n  return 3", "must return an Experiment, got int"),
    ("def get_config(:", "SyntaxError"),
    ("import no_such_module", "No module named 'no_such_module'"),
    ("def get_config():\n  return 1 / 0", "division by zero"),
  ],
)
def test_a_config_that_cannot_be_used_is_one_line(
  tmp_path, capsys, text, message
):
  path = tmp_path / "broken.py"
  path.write_text(text)
  assert cli.main(["train", str(path)]) == 2
  err = capsys.readouterr().err
  assert message in err and "broken.py" in err and err.count("\n") == 1


def test_an_error_of_a_library_keeps_its_traceback_in_a_file(
  calls, config, monkeypatch, capsys
):
  def train(config, **_):
    int("x\ny")

  monkeypatch.setattr(training_room.loop, "train", train)
  assert cli.main(["train", config]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "ValueError: invalid literal" in err
  path = pathlib.Path(err.split("traceback in ")[1].rstrip(")\n"))
  assert 'int("x\\ny")' in path.read_text()
  path.unlink()


def test_debug_shows_the_traceback(calls, config, monkeypatch):
  monkeypatch.setenv("JAXRL_DEBUG", "1")
  with pytest.raises(ValueError, match="steps must be"):
    cli.main(["train", config, "--steps", "0"])


def test_a_stopped_run_ends_with_the_code_of_its_signal(
  calls, config, monkeypatch, capsys
):
  def train(config, **_):
    raise Stopped("stopped after step 3; --resume goes on.")

  monkeypatch.setattr(training_room.loop, "train", train)
  assert cli.main(["train", config]) == 128 + signal.SIGTERM
  assert capsys.readouterr().err == (
    "jaxrl: stopped after step 3; --resume goes on.\n"
  )


def test_help_and_version_import_nothing_heavy():
  code = (
    "import sys\nfrom jaxrl_llm import cli\n"
    "cli.main(['--version']), cli.main(['--help'])\n"
    "heavy = {'jax', 'flax', 'transformers', 'matplotlib', 'tyro', 'rich'}\n"
    "sys.exit(bool(heavy & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert "usage: jaxrl COMMAND" in done.stdout


def test_the_module_runs_as_a_program():
  done = subprocess.run(
    [sys.executable, "-m", "jaxrl_llm", "trian"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("jaxrl: unknown command 'trian'")


def test_no_room_on_the_device_is_one_line_that_says_what_needs_less(capsys):
  code = cli.main(
    ["sample", "tiny", "--prompt", "a", "--max-new-tokens", "200000000"]
  )
  err = capsys.readouterr().err
  assert code == 2 and err.count("\n") == 1
  assert "no room on the device" in err and "model.remat full" in err
