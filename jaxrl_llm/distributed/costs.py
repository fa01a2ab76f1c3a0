"""What a compiled program moves between devices, and what a traced one adds up.

The compiler's own analysis counts the body of a loop once. Here bodies count
as often as they run, where that is known, else as often as the caller says.
"""

from collections.abc import Iterator
import math
import re
from typing import Any

import jax

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_CALL = re.compile(
  r"(?:body|calls|to_apply|branch_computations)=\{?%?([\w.-]+)"
)
# A collective that goes on beside other work is repeated in all that it passes.
_GOES_ON = re.compile(
  r"^\s*%async-collective-done|calls=%?async_collective_fusion"
)
_CONSTANT = re.compile(r"= [su]32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def flops(jaxpr: Any, *, unknown_trips: int = 1) -> float:
  """Operations of a program's matrix products, loops multiplied out.

  Args:
    jaxpr: of jax.make_jaxpr, or any inside of one.
    unknown_trips: how often the body of a while loop runs.

  Returns:
    Multiplications and additions, over all devices together.
  """
  total = 0.0
  for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    if equation.primitive.name == "dot_general":
      total += _product_flops(equation)
      continue
    inner = [
      flops(part, unknown_trips=unknown_trips) for part in _inner(equation)
    ]
    name = equation.primitive.name
    if name == "cond":
      total += max(inner, default=0.0)
    elif name == "scan":
      total += equation.params["length"] * sum(inner)
    elif name == "while":
      total += unknown_trips * sum(inner)
    elif name == "shard_map":
      total += math.prod(equation.params["mesh"].shape.values()) * sum(inner)
    else:
      total += sum(inner)
  return total


def _product_flops(equation) -> float:
  left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  (contracted, _), _ = equation.params["dimension_numbers"]
  return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _inner(equation) -> Iterator[Any]:
  """The programs inside an operation; of a derivative rule, the primal's."""
  for name, value in equation.params.items():
    if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_thunk"):
      continue
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(getattr(part, "jaxpr", part), "eqns"):
        yield part


def collective_bytes(text: str, *, unknown_trips: int = 1) -> dict[str, float]:
  """Bytes that each device receives, by kind of collective.

  Args:
    text: of jax.stages.Compiled.as_text().
    unknown_trips: how often a loop runs whose trips the compiler does not say.

  Returns:
    {kind: bytes of the results}, kinds without any left out.
  """
  bodies, entry = _computations(text)
  total: dict[str, float] = {}

  def add(name, times):
    for line in bodies.get(name, ()):
      for kind in KINDS:
        if re.search(rf"\b{kind}(-start)?\(", line):
          total[kind] = total.get(kind, 0.0) + times * _result_bytes(line, kind)
      inside = times
      if " while(" in line:
        inside *= _trips(line, bodies) or unknown_trips
      for called in () if _GOES_ON.search(line) else _CALL.findall(line):
        add(called, inside)

  add(entry, 1.0)
  return total


def _trips(line, bodies) -> int:
  """How often a loop runs; 0 if neither it nor its condition says so.

  A condition that compares with a constant bounds the loop by it: one that
  may end sooner, as decoding does, is counted to its end.
  """
  if known := _TRIPS.search(line):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", line)
  lines = bodies.get(condition[1], ()) if condition else ()
  return max(map(int, _CONSTANT.findall("\n".join(lines))), default=0)


def _computations(text) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the entry."""
  bodies, name, entry = {}, None, ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      name = header[1]
      bodies[name] = []
      entry = name if line.startswith("ENTRY") else entry
    elif name is not None:
      bodies[name].append(line)
  return bodies, entry


def _result_bytes(line, kind) -> float:
  """Of the shapes before the operation; a -start repeats its operands."""
  shapes = _SHAPE.findall(re.split(rf"\b{kind}(?:-start)?\(", line)[0])
  sizes = [_bytes(dtype, dims) for dtype, dims in shapes]
  if f"{kind}-start(" in line and kind != "all-reduce" and len(sizes) > 1:
    return sizes[1]
  return sum(sizes)


def held_bytes(tree: Any) -> float:
  """Bytes of a tree on one device: of arrays, or shapes with shardings."""
  return float(
    sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


def _bytes(dtype, dims) -> float:
  bits = _BITS.get(dtype) or int(dtype[1:])
  return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def received(
  compiled: jax.stages.Compiled, *, unknown_trips: int = 1
) -> dict[str, float] | None:
  """collective_bytes of a program; None where it cannot be printed."""
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:
    return None  # this compiler cannot print some programs of v6e
  return collective_bytes(text, unknown_trips=unknown_trips)


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes on one device: arguments, results, temporaries, and all of them.

  Results that take the place of a donated argument are counted once.
  """
  memory = compiled.memory_analysis()
  kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "arguments": memory.argument_size_in_bytes,
    "results": kept,
    "temporaries": memory.temp_size_in_bytes,
    "total": memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes,
  }
