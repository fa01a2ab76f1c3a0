"""Numbers computed by official code, and how ours are compared with them.

A file holds {"produced_by", "conventions", "cases"}; a case holds "kind",
"name", "fixture", "inputs", "params" and "outputs". Numbers that are not
finite are the strings "nan", "inf" and "-inf".
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One call of official code.

  Attributes:
    kind: what was called ("advantage", "policy_loss", ...).
    name: the variant, as its library names it.
    fixture: which inputs.
    inputs: arrays by name; texts and records as they are.
    params: options of the call.
    outputs: arrays by name; nested dicts stay as they are.
    source: the library, file and version; that of the case, else of its file.
    conventions: of its file; how closely to compare is among them.
  """

  kind: str
  name: str
  fixture: str
  inputs: Mapping[str, np.ndarray]
  params: Mapping[str, Any]
  outputs: Mapping[str, Any]
  source: str
  conventions: str

  @property
  def library(self) -> str:
    """The repository that the numbers come from, as "owner/name"."""
    return re.split(r"[ @:]", self.source.strip(), maxsplit=1)[0]

  def __str__(self) -> str:
    """A name for a test: kind, variant, inputs and options."""
    options = (f"{k}={v}" for k, v in self.params.items())
    return "-".join([self.kind, self.name, str(self.fixture), *options])

  def array(self, name: str, dtype: Any = jnp.float32) -> jnp.ndarray:
    """An input on the device."""
    return jnp.asarray(self.inputs[name], dtype)


def load(path: str | os.PathLike, **select: str) -> list[Case]:
  """The cases of a file.

  Args:
    path: of the JSON.
    **select: keeps cases whose kind, name or fixture equals this.

  Raises:
    ValueError: if no case is left; a test must not pass by comparing nothing.
  """
  cases = [
    case
    for case in _cases(pathlib.Path(path))
    if all(getattr(case, key) == value for key, value in select.items())
  ]
  if not cases:
    raise ValueError(f"{path} has no case with {select}.")
  return cases


def assert_close(
  actual: Any, expected: Any, *, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
  """Compares with a golden output; the defaults are those for float32.

  Args:
    actual: ours.
    expected: from Case.outputs.
    rtol: relative tolerance; 1e-6 for float64.
    atol: absolute tolerance; 1e-7 for float64.

  Raises:
    AssertionError: for shapes or numbers that differ.
  """
  actual, expected = np.asarray(actual), _numbers(expected)
  assert actual.shape == expected.shape, (actual.shape, expected.shape)
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def _cases(path: pathlib.Path) -> Iterator[Case]:
  content = json.loads(path.read_text(encoding="utf-8"))
  for case in content["cases"]:
    yield Case(
      kind=case["kind"],
      name=case["name"],
      fixture=case["fixture"],
      inputs={k: _array(v) for k, v in case["inputs"].items()},
      params=case["params"],
      outputs=case["outputs"],
      source=case.get("source", content["produced_by"]),
      conventions=content.get("conventions", ""),
    )


def _array(value: Any) -> Any:
  """Numbers as an array; anything with other text in it as it is."""
  try:
    return _numbers(value)
  except (TypeError, ValueError):
    return value


def _numbers(value: Any) -> np.ndarray:
  """Float64 array of nested lists, in which "nan" and "inf" are strings."""
  return np.asarray(np.asarray(value, dtype=object), dtype=np.float64)
