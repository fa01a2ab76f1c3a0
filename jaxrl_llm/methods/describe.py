"""Text about the methods, read from their own files: nothing is said twice.

A method's module says it all: first line "NAME: sentence.", equations indented
by four, "Against GRPO it changes:" with one plug point an entry, and the
paper with its arXiv number last.
"""

import ast
from collections.abc import Iterator
import dataclasses
import inspect
import re
import sys
import textwrap
from typing import Any

from jaxrl_llm.methods import base, registry

PLUG_POINTS = (
  "transform",
  "advantage",
  "selection",
  "weighting",
  "objective",
  "plan",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One hyper-parameter.

  Attributes:
    name: as written in a config.
    default: as Python writes it.
    help: its docstring, on one line.
  """

  name: str
  default: str
  help: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What is known of one method.

  Attributes:
    name: key in METHODS.
    title: name in the literature.
    summary: one sentence.
    text: the module's docstring.
    changes: plug points that differ from GRPO.
    paper: arXiv identifier.
    needs: forwards that its defaults ask for.
    fields: hyper-parameters.
  """

  name: str
  title: str
  summary: str
  text: str
  changes: tuple[str, ...]
  paper: str
  needs: tuple[str, ...]
  fields: tuple[Field, ...]


def describe(name: str) -> Description:
  """Reads a method's file.

  Args:
    name: a key of METHODS.

  Raises:
    ValueError: for an unknown name, with the nearest one.
  """
  config = registry.get(name)
  text = inspect.cleandoc(sys.modules[config.__module__].__doc__)
  title, summary = text.split("\n\n")[0].replace("\n", " ").split(": ", 1)
  papers = re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)
  return Description(
    name=name,
    title=title,
    summary=summary,
    text=text,
    changes=tuple(_changes(text)),
    paper=papers[-1] if papers else "",
    needs=tuple(sorted(config().build().needs)),
    fields=tuple(_fields(config)),
  )


def table() -> str:
  """One line a method: name, paper, plug points changed, what it is."""
  rows = [("method", "paper (arXiv)", "changes against GRPO", "")]
  for item in map(describe, registry.METHODS):
    changes = ", ".join(item.changes) or "-"
    rows.append((item.name, item.paper, changes, item.summary))
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines = [
    "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip()
    for row in rows
  ]
  return "\n".join(lines)


def explain(name: str) -> str:
  """Everything about one method: its text, needs and hyper-parameters.

  Args:
    name: a key of METHODS.

  Raises:
    ValueError: for an unknown name, with the nearest one.
  """
  item = describe(name)
  needs = ", ".join(item.needs) or "nothing but log-probs"
  lines = [item.text, "", f"Needs, with its defaults: {needs}.", ""]
  lines.append("Hyper-parameters:")
  for field in item.fields:
    lines.append(f"  {field.name} = {field.default}")
    lines += textwrap.wrap(
      field.help, 78, initial_indent="      ", subsequent_indent="      "
    )
  return "\n".join(lines)


def markdown() -> str:
  """The page docs/methods.md: a table, then each method."""
  lines = ["# Methods", "", "| name | paper | changes against GRPO | |"]
  lines.append("|---|---|---|---|")
  items = [describe(name) for name in registry.METHODS]
  for item in items:
    changes = ", ".join(item.changes) or "-"
    link = f"[{item.paper}](https://arxiv.org/abs/{item.paper})"
    lines.append(f"| `{item.name}` | {link} | {changes} | {item.summary} |")
  for item in items:
    lines += ["", f"## {item.title}", "", "```", explain(item.name), "```"]
  return "\n".join(lines) + "\n"


def _changes(text: str) -> Iterator[str]:
  """Plug points named, two spaces in, under "Against GRPO it changes:"."""
  _, found, block = text.partition("Against GRPO it changes:\n")
  for line in block.split("\n\n")[0].splitlines() if found else ():
    match = re.match(r"  (\w+)  ", line)
    if match and match[1] in PLUG_POINTS:
      yield match[1]


def _fields(config: type[base.MethodConfig]) -> Iterator[Field]:
  """Fields with the docstrings that stand under them in the source."""
  tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
  body = tree.body[0].body
  docs = {
    node.target.id: _text_of(after)
    for node, after in zip(body, body[1:], strict=False)
    if isinstance(node, ast.AnnAssign)
  }
  for field in dataclasses.fields(config):
    text = " ".join(docs.get(field.name, "").split())
    yield Field(name=field.name, default=_default(field), help=text)


def _default(field: dataclasses.Field) -> str:
  """As Python writes it; a method inside a method by its name."""
  if field.default_factory is dataclasses.MISSING:
    return repr(field.default)
  value = field.default_factory()
  if isinstance(value, base.MethodConfig):
    plain = {f.name: f.default for f in dataclasses.fields(value)}
    set_here = (
      f"{name}={getattr(value, name)!r}"
      for name, default in plain.items()
      if default not in (dataclasses.MISSING, getattr(value, name))
    )
    return f"{type(value).__name__}({', '.join(set_here)})"
  return repr(value)


def _text_of(node: ast.stmt) -> str:
  """The value of a bare string statement, else nothing."""
  value: Any = getattr(node, "value", None)
  is_text = isinstance(node, ast.Expr) and isinstance(value, ast.Constant)
  return value.value if is_text and isinstance(value.value, str) else ""
