"""The config that a command is given first, and whether it is for it."""

import dataclasses
from typing import Any

from jaxrl_llm import arguments


def read_config(
  command: str, args: list[str], *, default_method: str = ""
) -> tuple[Any, list[str], str]:
  """The config of the first argument, with --method applied; and the rest.

  Args:
    command: of jaxrl.
    args: what follows it.
    default_method: takes the place of a config's method that learns from
      samples; "": none does.
  """
  name, rest = arguments.first(args, command, "CONFIG", "demo_addition")
  from jaxrl_llm.training import config_file, experiment

  config = config_file.load(name) if name else experiment.Experiment()
  chosen, rest = arguments.take(rest, "--method")
  if default_method and chosen is None and not config.method.build().supervised:
    chosen = default_method
  if chosen is not None:
    from jaxrl_llm import methods

    config = dataclasses.replace(config, method=methods.get(chosen)())
  return config, rest, name or "CONFIG"


def check_command(command: str, method: Any) -> None:
  """Refuses a method that another command trains with."""
  from jaxrl_llm import methods

  supervised = method.build().supervised
  if supervised == (command == "sft"):
    return
  names = {kind: name for name, kind in methods.METHODS.items()}
  name = names.get(type(method), type(method).__name__)
  if supervised:
    raise ValueError(
      f"method {name} learns from the data's answers, not from samples:"
      f" `jaxrl sft CONFIG --method {name}` trains with it."
    )
  raise ValueError(
    f"method {name} learns from samples: `jaxrl train CONFIG --method {name}`"
    " trains with it; `jaxrl sft` has the methods sft and eksft."
  )
