"""Wrong inputs of the real commands: one clear line, exit code 2."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import pytest

from jaxrl_llm import cli

ROOT = pathlib.Path(__file__).parents[1]
TINY = ["train", "tiny_addition"]

# name of the case, arguments (PLACE stands for the folder of _make), and what
# the line must say
CASES = [
  ("unknown method", [*TINY, "--method", "grop"], "Did you mean 'grpo'"),
  ("unknown option of a method",
   [*TINY, "--method", "dapo", "--method.clip-hi", "1"], "--method.clip-high"),
  ("bad option of a method", [*TINY, "--method.clip-low", "2"],
   "clip_low must be in (0, 1], got 2.0"),
  ("group of one", [*TINY, "--group-size", "1"],
   "group_size must be at least 2, got 1"),
  ("missing config", ["train", "PLACE/none.py"], "no config"),
  ("config without get_config", ["train", "PLACE/empty.py"],
   "has no get_config()"),
  ("config that raises", ["train", "PLACE/raises.py"], "ZeroDivisionError"),
  ("missing data file",
   [*TINY, "--data.source", "none.jsonl", "--data.path", "PLACE"],
   "there is no file 'PLACE/none.jsonl'"),
  ("broken data line",
   [*TINY, "--data.source", "broken.jsonl", "--data.path", "PLACE"],
   "broken.jsonl line 2 is not JSON"),
  ("data line without an answer",
   [*TINY, "--data.source", "fields.jsonl", "--data.path", "PLACE"],
   "must have the fields prompt (or question) and answer, it has prompt"),
  ("unknown source", [*TINY, "--data.source", "gsm9k"], "gsm8k"),
  ("unknown split", [*TINY, "--data.eval-split", "valid"], "valid"),
  ("empty evaluation",
   [*TINY, "--data.source", "one.jsonl", "--data.path", "PLACE"],
   "has no problem"),
  ("template without a prompt", [*TINY, "--data.template", "Answer:"],
   "data.template must contain {prompt}, got 'Answer:'"),
  ("broken GGUF", [*TINY, "--model.name", "PLACE/broken.gguf"],
   "broken.gguf"),
  ("missing GGUF", [*TINY, "--model.name", "PLACE/none.gguf"], "none.gguf"),
  ("truncated safetensors", [*TINY, "--model.name", "PLACE/cut"],
   "model.safetensors"),
  ("folder with a pickle only", [*TINY, "--model.name", "PLACE/pickle"],
   "safetensors"),
  ("folder without weights", [*TINY, "--model.name", "PLACE/bare"],
   "safetensors"),
  ("unknown model", [*TINY, "--model.name", "smolm2-135m"],
   "Did you mean 'smollm2-135m'?"),
  ("unknown reward", [*TINY, "--reward", "exact_interger"],
   "exact_integer"),
  ("missing reward file", [*TINY, "--reward", "PLACE/none.py:f"],
   "there is no file"),
  ("missing reward function", [*TINY, "--reward", "PLACE/rewards.py:scor"],
   "has no function 'scor'; did you mean 'score'"),
  ("reward file that raises", [*TINY, "--reward", "PLACE/raises.py:f"],
   "failed with ZeroDivisionError"),
  ("reward of wrong arity", [*TINY, "--reward", "PLACE/rewards.py:two"],
   "must take (prompts, completions, answers)"),
  ("reward of wrong form", [*TINY, "--reward", "PLACE/rewards.py:scalar"],
   "must return one number per completion"),
  ("too many reward weights", [*TINY, "--reward-weights", "1", "1", "1"],
   "reward_weights has 3 values for 2 rewards"),
  ("long prompt", [*TINY, "--prompt-length", "4"],
   "raise prompt_length to at least 7"),
  ("temperature 0", [*TINY, "--sampling.temperature", "0"],
   "sampling.temperature must be positive, got 0"),
  ("top-p 2", [*TINY, "--sampling.top-p", "2"], "must be in (0, 1], got 2"),
  ("greedy with temperature",
   ["eval", "tiny_addition", "--evaluation.sampling.temperature", "0.5"],
   "evaluation.sampling.greedy takes the likeliest"),
  ("stop of several tokens", [*TINY, "--sampling.stop", "ab"],
   "sampling.stop 'ab' is 2 tokens"),
  ("unknown option", [*TINY, "--lr", "1"],
   "did you mean --optimizer.learning-rate?"),
  ("negative rank", [*TINY, "--lora.rank", "-1"],
   "lora.rank must be 0 (off) or more, got -1"),
  ("alpha 0", [*TINY, "--lora.alpha", "0"],
   "lora.alpha must be positive and finite, got 0.0"),
  ("unknown target", [*TINY, "--lora.rank", "4", "--lora.targets", "q", "x"],
   "lora.targets must name one or more of q, k, v, o, gate, up, down, got 'x'"),
  ("indivisible micro-batches", [*TINY, "--micro-batches", "3"],
   "= 3 must divide prompts_per_step * group_size = 16"),
  ("long warm-up", [*TINY, "--optimizer.warmup-steps", "20"],
   "warmup_steps must be in [0, optimizer steps = 20), got 20"),
  ("negative rate", [*TINY, "--optimizer.learning-rate", "-1"],
   "learning_rate must be positive and finite, got -1"),
  ("rate that is no number", [*TINY, "--optimizer.learning-rate", "nan"],
   "learning_rate must be positive"),
  ("bad momentum", [*TINY, "--optimizer.b1", "1.5"], "optimizer.b1"),
  ("no evaluation problems", [*TINY, "--evaluation.examples", "0"],
   "evaluation.examples"),
  ("no evaluation batch", [*TINY, "--evaluation.batch", "0"],
   "evaluation.batch"),
  ("negative interval", [*TINY, "--checkpoint.every", "-1"],
   "checkpoint.every"),
  ("no checkpoints kept", [*TINY, "--checkpoint.keep", "0"],
   "checkpoint.keep must be at least 1, got 0"),
  ("a period between saves", [*TINY, "--checkpoint.keep-period", "7"],
   "checkpoint.keep_period must be a multiple of checkpoint.every = 5, got 7"),
  ("a period without saves",
   [*TINY, "--checkpoint.every", "0", "--checkpoint.keep-period", "7"],
   "checkpoint.keep_period must be 0 where checkpoint.every is 0, got 7"),
  ("folder in use", [*TINY, "--name", "used"], "already holds a run"),
  ("nothing to resume", [*TINY, "--name", "new", "--resume"],
   "nothing to resume in"),
  ("resume and overwrite", [*TINY, "--resume", "--overwrite"], "exclude"),
  ("runs is a file", [*TINY, "--runs", "PLACE/empty.py"], "empty.py"),
  ("checkpoint of no run",
   ["eval", "tiny_addition", "--checkpoint", "PLACE/none"],
   "nothing"),
  ("sample of no model", ["sample", "tinny", "--prompt", "a"],
   "Did you mean 'tiny'?"),
  ("sample of no text", ["sample", "tiny", "--prompt", ""], "no tokens"),
]  # fmt: skip


def _tensors(folder: pathlib.Path, *, data: bytes):
  """A safetensors file whose header promises more than `data`."""
  entry = {"dtype": "F32", "shape": [128, 64], "data_offsets": [0, 32768]}
  header = json.dumps({"model.embed_tokens.weight": entry}).encode()
  (folder / "model.safetensors").write_bytes(
    struct.pack("<Q", len(header)) + header + data
  )


def _folder(path: pathlib.Path) -> pathlib.Path:
  """A model folder with config and tokenizer, without weights."""
  from jaxrl_llm.data import tokenizers
  from jaxrl_llm.models import families, hf_config

  path.mkdir()
  shape = hf_config.to_hf(families.TINY, extra=None)
  (path / "config.json").write_text(json.dumps(shape))
  tokenizers.CharTokenizer().save(path)
  return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """All the files that are wrong."""
  here = tmp_path_factory.mktemp("wrong")
  (here / "empty.py").write_text("x = 1\n")
  (here / "raises.py").write_text("1 / 0\n")
  (here / "rewards.py").write_text(
    "def score(prompts, completions, answers):\n"
    "  return [0.0] * len(prompts)\n"
    "def two(prompts, completions):\n  return [0.0]\n"
    "def scalar(prompts, completions, answers):\n  return 1.0\n"
  )
  good = '{"prompt": "1 + 1 =", "answer": "2"}\n'
  (here / "broken.jsonl").write_text(good + '{"prompt": "1 +\n')
  (here / "fields.jsonl").write_text('{"prompt": "1 + 1 ="}\n')
  (here / "one.jsonl").write_text(good)
  (here / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 and then nothing")
  _tensors(_folder(here / "cut"), data=b"\0" * 100)
  (_folder(here / "pickle") / "pytorch_model.bin").write_bytes(b"\x80\x04.")
  _folder(here / "bare")
  (here / "runs" / "used").mkdir(parents=True)
  (here / "runs" / "used" / "metrics.jsonl").write_text("{}\n")
  return here


def _arguments(args, place):
  args = [arg.replace("PLACE", str(place)) for arg in args]
  if args[0] != "sample" and "--runs" not in args:
    args += ["--runs", str(place / "runs")]
  return args


def _check(code: int, err: str, message: str):
  assert code == 2, err
  assert err.startswith("jaxrl: ") and err.count("\n") == 1, err
  assert message in err
  assert "Traceback" not in err and "traceback in" not in err
  assert len(err) < 500


@pytest.mark.parametrize(
  ("args", "message"),
  [pytest.param(*case[1:], id=case[0]) for case in CASES],
)
def test_one_line_and_exit_code_two(place, capsys, args, message):
  code = cli.main(_arguments(args, place))
  _check(code, capsys.readouterr().err, message.replace("PLACE", str(place)))


def test_no_wrong_input_leaves_a_run_behind(place):
  """Runs after the cases above: none of them may have started a folder."""
  assert [path.name for path in (place / "runs").iterdir()] == ["used"]


@pytest.mark.parametrize("name", ["group of one", "broken GGUF", "long prompt"])
def test_as_a_process_nothing_else_is_printed(place, name):
  args, message = {case[0]: case[1:] for case in CASES}[name]
  done = subprocess.run(
    [sys.executable, "-m", "jaxrl_llm", *_arguments(args, place)],
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  _check(done.returncode, done.stderr, message)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run of one step."""
  runs = tmp_path_factory.mktemp("runs")
  args = [*TINY, "--runs", str(runs), "--steps", "1", "--no-export"]
  assert cli.main([*args, "--evaluation.examples", "4"]) == 0
  return runs


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--model.name", "SMALL"], "made with another configuration: "),
    (["--seed", "1"], "have seed 0, this run has 1"),
    (["--prompts-per-step", "2"], "have batch_size 4, this run has 2"),
    (["--data.size", "40"], "have problems 50, this run has 40"),
  ],
)
def test_resume_with_another_config(run, tmp_path, capsys, args, message):
  import dataclasses

  import jax

  from jaxrl_llm.data import tokenizers
  from jaxrl_llm.models import families
  from jaxrl_llm.models.weights import hf

  if "SMALL" in args:
    shape = dataclasses.replace(families.TINY, width=32)
    params = families.build(shape).init(jax.random.key(0))
    hf.save(tmp_path, shape, params)
    tokenizers.CharTokenizer().save(tmp_path)
  args = [str(tmp_path) if arg == "SMALL" else arg for arg in args]
  before = (run / "tiny_addition" / "config.json").read_bytes()
  capsys.readouterr()
  code = cli.main([*TINY, "--runs", str(run), "--resume", *args])
  _check(code, capsys.readouterr().err, message)
  assert (run / "tiny_addition" / "config.json").read_bytes() == before
