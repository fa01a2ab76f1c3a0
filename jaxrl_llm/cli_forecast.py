"""Commands that say before a run what will come of it: plan, doctor."""

import dataclasses
import functools
import sys

from jaxrl_llm import arguments, cli_config


def plan(args: list[str]) -> int:
  """`jaxrl plan`; returns the exit code, 1 if the run does not fit."""
  import tyro

  config, rest, name = cli_config.read_config("plan", args)
  cli_config.check_command("plan", config.method)
  kind = arguments.flat(type(config))

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Plan:
    """Compiles a run for TPUs that are not here and says whether it fits."""

    config: kind
    topology: str = ""
    """chip and shape: v5e:4x4, v6e:8x8, v5p:4x4x4, ..."""
    search: tyro.conf.FlagCreatePairsOff[bool] = False
    """looks for the largest micro-batch that fits, for each remat policy"""
    report: str = ""
    """writes a page with bars to this file"""

  parsed = arguments.parse(
    Plan, Plan(config=config), rest, f"jaxrl plan {name}"
  )
  if not parsed.topology:
    raise ValueError(
      "--topology says for which TPUs, got nothing; for example --topology"
      " v5e:4x4 (16 chips)."
    )
  import jax

  # The compiler for TPUs needs no accelerator, and must not take one.
  jax.config.update("jax_platforms", "cpu")
  from jaxrl_llm.training import plan as planning
  from jaxrl_llm.training import plan_report

  say = functools.partial(print, file=sys.stderr, flush=True)
  if parsed.search:
    tried = planning.search(parsed.config, parsed.topology, say=say)
    print(plan_report.searched(tried))
    return not any(one.fits for one in tried)
  made = planning.make(parsed.config, parsed.topology, say=say)
  print(plan_report.text(made))
  if parsed.report:
    plan_report.write(made, parsed.report, name=parsed.config.name)
    print(parsed.report)
  return not made.fits


def doctor(args: list[str]) -> int:
  """`jaxrl doctor`; returns the exit code, 1 if something is wrong."""
  config, rest, name = cli_config.read_config("doctor", args)
  cli_config.check_command("doctor", config.method)
  kind = arguments.flat(type(config))

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Doctor:
    """Looks for what would go wrong with a run, before its first step."""

    config: kind

  parsed = arguments.parse(
    Doctor, Doctor(config=config), rest, f"jaxrl doctor {name}"
  )
  from jaxrl_llm.training.doctor import examination, finding

  say = functools.partial(print, file=sys.stderr, flush=True)
  statuses = []
  for found in examination.examine(parsed.config, say=say):
    print(found, flush=True)
    statuses.append(found.status)
  return finding.FAIL in statuses
