"""Text about the methods, read from their own files: nothing is said twice.

A method's module says it all, in the forms of methods/reading.py. What is true
of many methods, what a forward costs or where a std misleads, is said here.
"""

from collections.abc import Iterator
import dataclasses
import inspect
import sys
import textwrap

from jaxrl_llm.methods import base, reading, registry

# What the step or the plan does for a method, by need.
_NEEDS = {
  "ref_logprobs": "a forward of the frozen reference, once a step",
  "old_scores": "a scoring forward of the policy before the first update",
  "entropy": "the entropy of every token, from the forwards there are",
  "hidden": "final hidden states, from the forwards there are",
  "values": "a critic on the policy's hidden states, with its own optimizer",
  "mtp_logprobs": "a module that predicts a token further, one block and the"
  " head once more a forward, with its own optimizer",
  "prompt_logprobs": "log-probs of the prompts' own tokens, prompts once more",
  "reference_kl": "a forward of the frozen reference for each of the policy's,"
  " and the logits of both, a few tokens at a time",
  "collision": "the sum of the squared probabilities, from the same logits",
  "token_hidden": "final hidden states at each completion's own tokens, of"
  " which one more is fed; no packing",
  "prompt_hidden": "final hidden states of the prompts, from the forwards there"
  " are",
  "layer_jsd": "an inner layer's predictions against the final ones, from the"
  " forwards there are: the head once more for each, a few tokens at a time",
  "attention_jsd": "an inner layer's attention against the last one's, made"
  " anew from the forwards there are",
  "now_scores": "a scoring forward of the policy before each update",
  "passes": "a scoring forward of the policy under another prompt, once a step",
  "shadow": "a slow average of the policy: a copy of it, and a scoring forward",
  "verifier_logprob": "a forward of another model over the texts, once a step",
  "annotated": "what the host reads from the texts, step by step",
  "greedy_rewards": "one greedy completion a prompt, sampled and scored",
  "members": "one greedy rollout by each member; no backward pass, no moments",
  "rounds": "further rounds of samples, where groups have no signal",
}

# Field, words in its docstring, what to beware of.
_TRAPS = (
  (
    "kl",
    "",
    "k1 as a loss has zero expected gradient on-policy, k3 the gradient of the"
    " other direction, KL(ref || pi); exact and k2 have that of KL(pi || ref).",
  ),
  (
    "ddof",
    "over G",
    "with G = 2 the std is the difference itself: advantages are +-0.71 (ddof"
    " 1) or +-1 (ddof 0) however small the difference is.",
  ),
  (
    "clip_high",
    "ratio may rise above 1",
    "with one update a rollout the ratio is 1 and the clip does nothing;"
    " mini_batches or epochs above 1, or old samples, bring it into play.",
  ),
)
_SAMPLING_TRAP = (
  "ratios and KL are over the whole vocabulary at the sampling temperature:"
  " top-k, top-p and min-p draw from another distribution, whose log-probs are"
  " extras['behaviour_logprobs']."
)


_SUPERVISED_TRAP = (
  "held-out cross-entropy may rise while accuracy still does: look at both."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One hyper-parameter.

  Attributes:
    name: as written in a config.
    default: as Python writes it.
    help: its docstring, on one line.
    aliases: what it is called elsewhere, "TRL epsilon_high".
  """

  name: str
  default: str
  help: str
  aliases: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """What is known of one method.

  Attributes:
    name: key in METHODS.
    title: name in the literature.
    summary: one sentence.
    text: the module's docstring.
    equation: its equations with the numbers of the defaults.
    changes: plug points that differ from GRPO.
    paper: arXiv identifier.
    needs: keys of what its defaults ask for besides the policy's forward.
    traps: sentences.
    fields: hyper-parameters.
  """

  name: str
  title: str
  summary: str
  text: str
  equation: str
  changes: tuple[str, ...]
  paper: str
  needs: tuple[str, ...]
  traps: tuple[str, ...]
  fields: tuple[Field, ...]


def describe(name: str) -> Description:
  """Reads a method's file.

  Args:
    name: a key of METHODS.

  Raises:
    ValueError: for an unknown name, with the nearest one.
  """
  config = registry.get(name)()
  text = _text(config)
  title, summary = text.split("\n\n")[0].replace("\n", " ").split(": ", 1)
  fields = tuple(_fields(type(config)))
  method = config.build()
  return Description(
    name=name,
    title=title,
    summary=summary,
    text=text,
    equation=_equation(config),
    changes=tuple(reading.changes(text)),
    paper=(reading.papers(text) or [""])[-1],
    needs=tuple(_needs(method)),
    traps=tuple(_traps(fields, text, method)),
    fields=fields,
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
  """Everything about one method.

  Its text, its equations with the numbers of its defaults, what it needs, what
  to beware of and its hyper-parameters with their names elsewhere.

  Args:
    name: a key of METHODS.

  Raises:
    ValueError: for an unknown name, with the nearest one.
  """
  item = describe(name)
  lines = [item.text, "", "With its defaults:", ""]
  lines += [f"    {line}" for line in item.equation.splitlines()]
  lines += ["", "Needs, with its defaults, besides the policy's own forward:"]
  lines += _bullets([_NEEDS[need] for need in item.needs] or ["nothing"])
  lines += ["", "Traps:", *_bullets(item.traps), "", "Hyper-parameters:"]
  for field in item.fields:
    lines.append(f"  {field.name} = {field.default}")
    lines += _wrapped(field.help, "      ")
  named = [field for field in item.fields if field.aliases]
  if named:
    lines += ["", "Names elsewhere:"]
    lines += [f"  {f.name}: {', '.join(f.aliases)}" for f in named]
  return "\n".join(lines)


def markdown() -> str:
  """The page docs/methods.md: a table, then each method."""
  lines = ["# Methods", "", "| name | paper | changes against GRPO | needs | |"]
  lines.append("|---|---|---|---|---|")
  items = [describe(name) for name in registry.METHODS]
  for item in items:
    changes = ", ".join(item.changes) or "-"
    link = f"[{item.paper}](https://arxiv.org/abs/{item.paper})"
    needs = ", ".join(item.needs) or "-"
    cells = (f"`{item.name}`", link, changes, needs, item.summary)
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", "Needs, besides the policy's own forward:", ""]
  lines += [f"- {name}: {text}" for name, text in _NEEDS.items()]
  for item in items:
    lines += ["", f"## {item.title}", "", "```", explain(item.name), "```"]
  return "\n".join(lines) + "\n"


def _equation(config: base.MethodConfig) -> str:
  """Resolved; those of the method inside follow."""
  texts, numbers, inner = reading.field_texts(type(config)), {}, ""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if isinstance(value, base.MethodConfig):
      formulas = _equation(value)
      inner = f"\n\nwith {field.name} = {_written(value)}:\n{formulas}"
    elif isinstance(value, int | float) and not isinstance(value, bool):
      numbers[field.name] = value
      symbol, sign, _ = texts.get(field.name, "").partition(",")
      if sign and len(symbol) == 1:  # "c, coefficient of the bonus"
        numbers[symbol] = value
  return reading.resolved(reading.equations(_text(config)), numbers) + inner


def _text(config: base.MethodConfig) -> str:
  """The docstring of the module that the class is in."""
  return inspect.cleandoc(sys.modules[type(config).__module__].__doc__)


def _needs(method: base.Method | base.Evolution) -> Iterator[str]:
  """Keys of _NEEDS, of the step and of the plan."""
  if isinstance(method, base.Evolution):
    yield "members"
    return
  yield from (need for need in _NEEDS if need in method.needs)
  if method.passes:
    yield "passes"
  if method.shadow:
    yield "shadow"
  yield from (name for name in method.plan.extras if name in _NEEDS)
  memory = method.plan.init()
  if memory.keys() & {"annotated", "kappa"}:
    yield "annotated"
  if memory.keys() & {"surplus", "kappa"}:
    yield "rounds"


def _traps(
  fields: tuple[Field, ...], text: str, method: base.Method | base.Evolution
) -> Iterator[str]:
  """The method's own, then those of its kind."""
  own = reading.traps(text)
  if own:
    yield own
  for name, words, trap in _TRAPS:
    if any(f.name == name and words in f.help for f in fields):
      yield trap
  if method.supervised:
    yield _SUPERVISED_TRAP
  elif isinstance(method, base.Method):  # evolution has no ratio
    yield _SAMPLING_TRAP


def _fields(config: type[base.MethodConfig]) -> Iterator[Field]:
  """Fields with the docstrings that stand under them in the source.

  What GRPO has in the same words has GRPO's names elsewhere.
  """
  texts = reading.field_texts(config)
  grpo = reading.field_texts(registry.get("grpo"))
  for field in dataclasses.fields(config):
    text = texts.get(field.name, "")
    same = reading.without_aliases(grpo.get(field.name, "")) == text
    yield Field(
      name=field.name,
      default=_written(getattr(config(), field.name)),
      help=text,
      aliases=reading.aliases(grpo[field.name] if same and text else text),
    )


def _written(value: object) -> str:
  """As Python writes it; a method inside by what differs from its defaults."""
  if not isinstance(value, base.MethodConfig):
    return repr(value)
  default = type(value)()
  changed = (
    f"{field.name}={_written(getattr(value, field.name))}"
    for field in dataclasses.fields(value)
    if getattr(value, field.name) != getattr(default, field.name)
  )
  return f"{type(value).__name__}({', '.join(changed)})"


def _bullets(texts) -> list[str]:
  return [line for text in texts for line in _wrapped(text, "    ", "  - ")]


def _wrapped(text: str, rest: str, first: str | None = None) -> list[str]:
  first = rest if first is None else first
  return textwrap.wrap(text, 78, initial_indent=first, subsequent_indent=rest)
