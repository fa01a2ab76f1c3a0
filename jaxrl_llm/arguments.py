"""What was typed after `jaxrl COMMAND`, as values; mistakes become one line.

Options are fields of dataclasses, read by tyro.
"""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import difflib
import io
import re
from typing import Annotated, Any


def first(
  args: list[str], command: str, what: str, example: str
) -> tuple[str, list[str]]:
  """Splits off the one positional argument; "" if help is asked without it.

  Args:
    args: what follows the command.
    command, what, example: for the error: `jaxrl COMMAND` needs WHAT first, for
      example EXAMPLE.

  Raises:
    ValueError: if an option comes first, or nothing.
  """
  if args and not args[0].startswith("-"):
    return args[0], args[1:]
  if {"-h", "--help"} & set(args):
    return "", args
  raise ValueError(
    f"`jaxrl {command}` needs {what} first, for example"
    f" `jaxrl {command} {example}`."
  )


def take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
  """Takes `flag VALUE` or `flag=VALUE` out; the last one counts.

  Returns:
    The value, None if the flag is absent; and the other arguments.

  Raises:
    ValueError: if the flag has no value.
  """
  value, rest, i = None, [], 0
  while i < len(args):
    if args[i] == flag:
      if i + 1 == len(args) or args[i + 1].startswith("--"):
        raise ValueError(f"{flag} needs a value; see `jaxrl methods`.")
      value, i = args[i + 1], i + 2
      continue
    if args[i].startswith(flag + "="):
      value = args[i].split("=", 1)[1]
    else:
      rest.append(args[i])
    i += 1
  return value, rest


def flat(kind: type) -> Any:
  """The type, with its fields' options at the top level."""
  import tyro

  return Annotated[kind, tyro.conf.arg(name="")]


def parse(kind: type, default: Any, args: list[str], prog: str) -> Any:
  """Parses with tyro; its boxed errors become a one-line ValueError.

  Args:
    kind: dataclass of the options.
    default: one of it; its values are the defaults. None: the class's own.
    args: what was typed.
    prog: program and command, for help and errors.

  Raises:
    ValueError: one line, with a suggestion for an unknown option.
    SystemExit: after --help, with code 0.
  """
  import tyro

  known = {} if default is None else {"default": default}
  errors = io.StringIO()
  try:
    with contextlib.redirect_stderr(errors):
      return tyro.cli(kind, args=args, prog=prog, **known)
  except SystemExit as stop:
    if stop.code in (0, None):
      raise
    raise ValueError(_unboxed(errors.getvalue(), prog, default)) from None


def _unboxed(text: str, prog: str, default: Any) -> str:
  """One line from the sections of tyro's box, with a suggestion."""
  inside = re.findall(r"^│(.*)│$", text, flags=re.MULTILINE)
  sections = re.split(r"\n\s*─+\s*\n", "\n".join(inside))
  message = " ".join((sections[0] if inside else text).split()).rstrip(".")
  if unknown := re.search(r"Unrecognized options: (--[\w.-]+)", message):
    message = f"unknown option {unknown[1]}"
    nameless = "config" if hasattr(default, "config") else "sampling"
    message += _suggestion(unknown[1], _flags(default, nameless=nameless))
  return f"{message} (`{prog} --help` lists the options)"


def _suggestion(typed: str, flags: Sequence[str]) -> str:
  """The nearest option by spelling, by its last part, or by initials."""
  near = difflib.get_close_matches(typed, flags, 1, 0.75)
  end = typed.rsplit(".", 1)[-1].lstrip("-")
  last = {flag.rsplit(".", 1)[-1].lstrip("-"): flag for flag in flags}
  near += [last[name] for name in difflib.get_close_matches(end, last, 1)]
  near += [
    flag
    for name, flag in last.items()
    if "".join(word[:1] for word in name.split("-")) == end
  ]
  return f"; did you mean {near[0]}?" if near else ""


def _flags(options: Any, prefix: str = "--", nameless: str = "") -> list[str]:
  """Every option of nested dataclasses, as typed; one field adds no prefix."""
  flags = []
  for field in dataclasses.fields(options):
    value, name = getattr(options, field.name), field.name.replace("_", "-")
    if not dataclasses.is_dataclass(value):
      flags.append(prefix + name)
    else:
      flags += _flags(value, prefix if name == nameless else f"{prefix}{name}.")
  return flags


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """The words "(did you mean ...?)" and a space before; "" if none is near."""
  near = difflib.get_close_matches(name, list(known), 1)
  return f" (did you mean {near[0]!r}?)" if near else ""
