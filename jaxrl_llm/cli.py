"""The command line: `jaxrl train | sft | eval | sample | plan | doctor | ...`.

A mistake of the person typing ends in one line on stderr and exit code 2.
JAXRL_DEBUG=1 shows the traceback instead. Heavy imports wait until a command
needs them.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import sys
import tempfile
import textwrap
import traceback
from typing import Any

import jaxrl_llm
from jaxrl_llm import arguments, cli_config, cli_forecast, heap
from jaxrl_llm.distributed import cluster, guard

HELP = """\
usage: jaxrl COMMAND ...

  jaxrl train CONFIG [--resume | --overwrite] [--OPTION VALUE ...]
      train a language model; everything goes to runs/NAME/
  jaxrl sft CONFIG [--method sft | eksft] [--resume | --overwrite] [...]
      imitate the answers of the data instead: the usual start of a run
  jaxrl eval CONFIG [--checkpoint RUN_DIR | --weights FOLDER] [--OPTION ...]
      accuracy and pass@k on held-out problems
  jaxrl sample MODEL --prompt TEXT [TEXT ...] [--OPTION VALUE ...]
      write completions of a model
  jaxrl plan CONFIG --topology v5e:4x4 [--search] [--OPTION VALUE ...]
      whether the run fits TPUs that are not here; exit code 1 if not
  jaxrl doctor CONFIG [--OPTION VALUE ...]
      what would go wrong, before the first step; exit code 1 if something
  jaxrl methods [NAME]
      list the methods, or the options of one
  jaxrl --version

CONFIG is a .py file with get_config(), or the name of a file in configs/.
`jaxrl train CONFIG --help` lists every option of that config; `--method NAME`
switches the method, `--method.OPTION VALUE` sets its options.
JAXRL_DEBUG=1 shows the traceback of an error.
"""

_PACKAGE = pathlib.Path(__file__).parent
_NO_ROOM = "RESOURCE_EXHAUSTED"


def script() -> int:
  """The program `jaxrl`: main() in a process with large memory pages."""
  if sys.argv[1:2] in (
    [c] for c in ("train", "sft", "eval", "sample", "doctor")
  ):
    heap.use_large_pages()
    count = cluster.typed_count(sys.argv)
    if sys.argv[1] != "sample" and cluster.several(count):
      code = guard.watch()
      if code is not None:
        return code
    from pallas_kernels import aot  # imports jax

    aot.quiet_without_tpu()
  code = main()
  if together := sys.modules.get("jaxrl_llm.distributed.processes"):
    together.leave(code)
  return code


def main(args: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code (0 done, 2 a mistake)."""
  args = list(sys.argv[1:] if args is None else args)
  try:
    return _dispatch(args)
  except BrokenPipeError:  # `jaxrl ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception as error:
    if line := _lost(error):
      print(f"jaxrl: {line}", file=sys.stderr)
      return guard.LOST
    mistake = isinstance(error, (ValueError, TypeError, OSError, ImportError))
    mistake |= _NO_ROOM in str(error)
    if not mistake or os.environ.get("JAXRL_DEBUG", "0") not in ("", "0"):
      raise
    print(f"jaxrl: {_one_line(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("jaxrl: stopped.", file=sys.stderr)
    return 130


def _dispatch(args: list[str]) -> int:
  commands = {
    "train": _train,
    "sft": _sft,
    "eval": _evaluate,
    "sample": _sample,
    "plan": cli_forecast.plan,
    "doctor": cli_forecast.doctor,
    "methods": _methods,
  }
  if not args or args[0] in ("-h", "--help", "help"):
    print(HELP, end="")
    return 0
  if args[0] == "--version":
    print(jaxrl_llm.__version__)
    return 0
  if args[0] not in commands:
    raise ValueError(
      f"unknown command {args[0]!r}{arguments.did_you_mean(args[0], commands)};"
      f" legal: {', '.join(commands)}."
    )
  return commands[args[0]](args[1:]) or 0


def _train(args: list[str]) -> int:
  return _run("train", *cli_config.read_config("train", args))


def _sft(args: list[str]) -> int:
  config, rest, name = cli_config.read_config("sft", args, default_method="sft")
  return _run("sft", config, rest, name)


def _run(command: str, config: Any, rest: list[str], name: str) -> int:
  import tyro

  cli_config.check_command(command, config.method)
  kind = arguments.flat(type(config))

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Train:
    """Trains a language model; everything goes to RUNS/NAME/."""

    config: kind
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """continues the run of this name from its newest checkpoint"""
    auto_resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """as --resume if the run of this name was started, else starts it: for
    launchers, which run one command again and again"""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """deletes what the run of this name has written and starts anew"""
    processes: cluster.Processes = cluster.Processes()

  parsed = arguments.parse(
    Train, Train(config=config), rest, f"jaxrl {command} {name}"
  )
  from jaxrl_llm.training import experiment

  experiment.validate(parsed.config)
  main_process = _join(parsed.processes)
  from jaxrl_llm.distributed import processes  # slow: after the checks
  from jaxrl_llm.training import loop

  folder = pathlib.Path(parsed.config.runs).expanduser() / parsed.config.name
  started = parsed.auto_resume and processes.on_main(
    (folder / "config.json").exists
  )
  try:
    folder = loop.train(
      parsed.config,
      resume=parsed.resume or started,
      overwrite=parsed.overwrite,
    )
  except loop.Stopped as stopped:
    print(f"jaxrl: {stopped}", file=sys.stderr)
    return 128 + stopped.signum
  if main_process:
    print(f"{folder / 'report.html'}")
  return 0


def _join(given: cluster.Processes) -> bool:
  """Finds the other processes, if there are any; whether this one is main."""
  cluster.check(given)
  alone = not cluster.several(given.count)
  from jaxrl_llm.distributed import processes

  processes.initialize(cluster.Processes(count=1) if alone else given)
  return alone or processes.is_main()


def _evaluate(args: list[str]) -> None:
  config, rest, name = cli_config.read_config("eval", args)
  kind = arguments.flat(type(config))

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Evaluate:
    """Measures accuracy and pass@k on held-out problems."""

    config: kind
    checkpoint: str | None = None
    """folder of a run: evaluates its newest checkpoint"""
    weights: str | None = None
    """evaluates this model instead of model.name: an alias, folder, hub id or
    .gguf file"""
    processes: cluster.Processes = cluster.Processes()

  default = Evaluate(config=config)
  parsed = arguments.parse(Evaluate, default, rest, f"jaxrl eval {name}")
  if parsed.checkpoint and parsed.weights:
    raise ValueError("give --checkpoint or --weights, not both.")
  from jaxrl_llm.training import experiment

  experiment.validate(parsed.config)
  main_process = _join(parsed.processes)
  from jaxrl_llm.training import inference  # slow: after the checks

  result = inference.evaluate(
    parsed.config, checkpoint=parsed.checkpoint, weights=parsed.weights
  )
  for key, value in result.metrics.items() if main_process else ():
    print(f"{key:<16}{value:.4f}" if value % 1 else f"{key:<16}{value:g}")


def _sample(args: list[str]) -> None:
  import tyro

  from jaxrl_llm.training import experiment

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Sample:
    """Writes completions of a model."""

    prompt: tuple[str, ...]
    """texts to continue"""
    sampling: arguments.flat(experiment.Sampling) = experiment.Sampling()
    max_new_tokens: int = 64
    """longest completion, in tokens"""
    samples: int = 1
    """completions of each prompt"""
    seed: int = 0
    """of the sampling noise"""
    chat: tyro.conf.FlagCreatePairsOff[bool] = False
    """wraps each prompt as a user turn with the model's chat template"""

  model, rest = arguments.first(args, "sample", "MODEL", "smollm2-135m")
  parsed = arguments.parse(
    Sample, Sample(prompt=()), rest, f"jaxrl sample {model or 'MODEL'}"
  )
  if not parsed.prompt:
    raise ValueError("--prompt needs at least one text, got none.")
  for name in ("max_new_tokens", "samples"):
    if getattr(parsed, name) < 1:
      raise ValueError(
        f"--{name.replace('_', '-')} must be at least 1, got"
        f" {getattr(parsed, name)}."
      )
  from jaxrl_llm.training import inference

  completions = inference.sample(
    model,
    list(parsed.prompt),
    sampling=parsed.sampling,
    max_new_tokens=parsed.max_new_tokens,
    samples=parsed.samples,
    seed=parsed.seed,
    chat=parsed.chat,
  )
  for prompt, texts in zip(parsed.prompt, completions, strict=True):
    for text in texts:
      print(f"{prompt}{text}" if not parsed.chat else text)


def _methods(args: list[str]) -> None:
  """Prints every method with its sentence, or one with its options."""
  if args and args[0] in ("-h", "--help"):
    print("usage: jaxrl methods [NAME]")
    return
  from jaxrl_llm import methods
  from jaxrl_llm.methods import describe

  if args:
    print(describe.explain(args[0]))
    kind = methods.get(args[0])
    command = "sft" if kind().build().supervised else "train"
    print(
      f"\nSet them with `jaxrl {command} CONFIG --method {args[0]}"
      " --method.NAME VALUE`."
    )
  else:
    print(describe.table())


def _lost(error: Exception) -> str | None:
  """One line if the error comes of another process's end."""
  together = sys.modules.get("jaxrl_llm.distributed.processes")
  return together.lost(error) if together else None


def _one_line(error: Exception) -> str:
  """The message; one that nobody wrote for a person also gets a traceback file.

  Our own messages come from a `raise` in this package. Anything else (a
  library's error on bad input, or a bug) is still one line, but the whole
  story is kept where it can be read.
  """
  message = " ".join(str(error).split()) or type(error).__name__
  if _NO_ROOM in message:
    what = textwrap.shorten(message, 160, placeholder=" ...")
    return (
      f"no room on the device ({what}): more micro_batches, model.remat full,"
      " shorter lengths, a smaller evaluation.batch or a larger mesh.fsdp need"
      " less; `jaxrl plan` and `jaxrl doctor` say how much. What was saved is"
      " whole: --resume goes on."
    )
  frames = traceback.extract_tb(error.__traceback__)
  last = frames[-1] if frames else None
  if last is None or (
    _PACKAGE in pathlib.Path(last.filename).parents
    and (last.line or "").startswith("raise")
  ):
    return message
  if isinstance(error, OSError) and error.filename:
    return f"{error.strerror}: {error.filename}"
  with tempfile.NamedTemporaryFile(
    "w", prefix="jaxrl_error_", suffix=".txt", delete=False
  ) as file:
    traceback.print_exception(error, file=file)
  message = textwrap.shorten(message, 300, placeholder=" ...")
  return f"{type(error).__name__}: {message} (traceback in {file.name})"
