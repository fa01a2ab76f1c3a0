"""What the file of a method says, taken out of its text.

The forms that are read: equations indented by four before "Against GRPO it
changes:"; under that one plug point an entry, indented by two; a paragraph
that begins "Traps:"; the paper with its arXiv number last; and under each
field a docstring, in which "TRL epsilon_high" or "verl clip_ratio_high" is the
name that another library gives it.
"""

import ast
from collections.abc import Iterator, Mapping
import inspect
import re
import textwrap

PLUG_POINTS = (
  "measure",
  "passes",
  "transform",
  "advantage",
  "selection",
  "prepare",
  "weighting",
  "objective",
  "plan",
  "update",
)
LIBRARIES = (
  "TRL",
  "verl",
  "OpenRLHF",
  "NeMo RL",
  "AReaL",
  "slime",
  "open-instruct",
  "prime-rl",
)
# Option names that could be words; all others have "_" or "." inside.
_SHORT_NAMES = ("beta", "delta", "epsilon")
_MARK = "\x01"  # after a number that took the place of a name
_NUMBER = rf"[\d.]+(?:e-\d+)?{_MARK}?"
# What may follow a factor of 1; "1 if A > 0" is no product.
_NEXT = r"(?!(?:if|else|where|and|or|to|of|at|is)\b)[A-Za-z(|\[]"


def equations(text: str) -> str:
  """The indented lines before the plug points, one under the other.

  Args:
    text: docstring of a module, cleaned.
  """
  before = text.partition("Against GRPO it changes:")[0]
  lines = [line for line in before.splitlines() if line.startswith("    ")]
  return textwrap.dedent("\n".join(lines))


def resolved(formulas: str, values: Mapping[str, float]) -> str:
  """Equations with numbers in place of names.

    "clip(r, 1 - clip_low, 1 + clip_high)" -> "clip(r, 0.8, 1.2)"

  Terms that a number makes 0 are left out, factors of 1 too.

  Args:
    formulas: lines of equations.
    values: number of each name; others stay as they are.
  """
  for name, value in values.items():
    # Neither a function of that name nor what a line defines.
    formulas = re.sub(
      rf"(?<![\w'.])(?<!^){re.escape(name)}(?![\w'.(])",
      f"{value:g}{_MARK}",
      formulas,
      flags=re.MULTILINE,
    )
  formulas = re.sub(
    rf"(?:(?<=[({{])|(?<=, ))({_NUMBER}) ([-+]) ({_NUMBER})(?=[,)}}])",
    _added,
    formulas,
  )
  while zero := re.search(rf"\s*[-+] 0{_MARK}", formulas):
    end = _term_end(formulas, zero.end())
    formulas = formulas[: zero.start()] + formulas[end:]
  formulas = re.sub(rf" / 1{_MARK}", "", formulas)
  for _ in range(2):  # "1 1 A"
    formulas = re.sub(
      rf"(?<![\d.])1{_MARK}(?: \*)? (?={_NEXT}|1{_MARK})", "", formulas
    )
  return formulas.replace(_MARK, "")


def changes(text: str) -> Iterator[str]:
  """Plug points named, two spaces in, under "Against GRPO it changes:"."""
  _, found, block = text.partition("Against GRPO it changes:\n")
  for line in block.split("\n\n")[0].splitlines() if found else ():
    match = re.match(r"  (\w+)  ", line)
    if match and match[1] in PLUG_POINTS:
      yield match[1]


def traps(text: str) -> str:
  """The paragraph that begins "Traps:", on one line; "" without one."""
  found = re.search(r"^Traps:\s+(.+?)(?:\n\n|\Z)", text, re.DOTALL | re.M)
  return " ".join(found[1].split()) if found else ""


def papers(text: str) -> list[str]:
  """arXiv identifiers in order; the method's own is the last."""
  return re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)


def field_texts(config: type) -> dict[str, str]:
  """The docstring under each field of a dataclass, on one line."""
  body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body
  return {
    node.target.id: " ".join(_text_of(after).split())
    for node, after in zip(body, body[1:], strict=False)
    if isinstance(node, ast.AnnAssign)
  }


def aliases(text: str) -> tuple[str, ...]:
  """Names of a field elsewhere: "TRL epsilon_high", "verl clip_ratio_high".

  Args:
    text: docstring of the field.
  """
  found = []
  name = r"[a-z]\w*(?:\.\w+)*"
  libraries = "|".join(LIBRARIES)
  for match in re.finditer(
    rf"\b({libraries}):? (?:1 [-+] )?({name}(?:(?:, | and )"
    rf"(?!(?:{libraries})\b){name})*)",
    text,
  ):
    for each in re.split(r", | and ", match[2]):
      if not _is_option(each):
        break
      found.append(f"{match[1]} {each}")
  return tuple(found)


def without_aliases(text: str) -> str:
  """A field's docstring without the parentheses that name it elsewhere."""
  libraries = "|".join(LIBRARIES)
  return re.sub(rf" \((?:{libraries})\b[^()]*\)", "", text)


def _is_option(word: str) -> bool:
  return "_" in word or "." in word or word in _SHORT_NAMES


def _added(match: re.Match) -> str:
  """Of "1 - 0.2": 0.8."""
  left, right = (match[i].removesuffix(_MARK) for i in (1, 3))
  return f"{float(left) + float(match[2] + right):g}"


def _term_end(formulas: str, start: int) -> int:
  """Where a product ends: at a sum, a bracket that it is in, or a gap."""
  depth = 0
  for index in range(start, len(formulas)):
    rest = formulas[index:]
    if not depth and re.match(r"[)\],\n]|\s+[-+] |  ", rest):
      return index
    depth += (rest[0] in "([{") - (rest[0] in ")]}")
  return len(formulas)


def _text_of(node: ast.stmt) -> str:
  """The value of a bare string statement, else nothing."""
  value = getattr(node, "value", None)
  is_text = isinstance(node, ast.Expr) and isinstance(value, ast.Constant)
  return value.value if is_text and isinstance(value.value, str) else ""
