"""Numbers computed by official code, and how ours are compared with them.

A file holds {"produced_by", "conventions", "cases"}; a case holds "inputs",
"params" and "outputs", and may hold "kind", "name", "fixture" or "desc", and
"do_not_match": why ours must differ. Numbers that are not finite are the
strings "nan", "inf" and "-inf"; null is NaN.
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
    fixture: which inputs, or what there is to see in them.
    inputs: arrays by name; texts and records as they are.
    params: options of the call.
    outputs: arrays by name; nested dicts stay as they are.
    source: the library, file and version; that of the case, else of its file.
    conventions: of its file; how closely to compare is among them.
    slug: name of the file, which is the method's for that of one method.
    do_not_match: why the outputs are not to be reproduced; "" if they are.
  """

  kind: str
  name: str
  fixture: str
  inputs: Mapping[str, np.ndarray]
  params: Mapping[str, Any]
  outputs: Mapping[str, Any]
  source: str
  conventions: str
  slug: str
  do_not_match: str

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
    expected: from Case.outputs; of any structure.
    rtol: relative tolerance; 1e-6 for float64.
    atol: absolute tolerance; 1e-7 for float64.

  Raises:
    AssertionError: for shapes, names, texts or numbers that differ.
  """
  if isinstance(expected, Mapping):
    assert actual.keys() == expected.keys(), (actual.keys(), expected.keys())
    for name in expected:
      assert_close(actual[name], expected[name], rtol=rtol, atol=atol)
    return
  try:
    numbers = _numbers(expected)
  except (TypeError, ValueError):
    _assert_each_close(actual, expected, rtol=rtol, atol=atol)
    return
  actual, expected = np.asarray(actual, np.float64), numbers
  assert actual.shape == expected.shape, (actual.shape, expected.shape)
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def _assert_each_close(actual: Any, expected: Any, **tolerance: float) -> None:
  """Texts, records and rows of different lengths."""
  if isinstance(expected, str):
    assert str(actual) == expected, (str(actual), expected)
    return
  assert len(actual) == len(expected), (len(actual), len(expected))
  for ours, theirs in zip(actual, expected, strict=True):
    assert_close(ours, theirs, **tolerance)


def _cases(path: pathlib.Path) -> Iterator[Case]:
  content = json.loads(path.read_text(encoding="utf-8"))
  for case in content["cases"]:
    yield Case(
      kind=case.get("kind", "method"),
      name=case.get("name", path.stem),
      fixture=case.get("fixture", case.get("desc", "")),
      inputs={k: _array(v) for k, v in case["inputs"].items()},
      params=case["params"],
      outputs=case["outputs"],
      source=case.get("source", content["produced_by"]),
      conventions=content.get("conventions", ""),
      slug=path.stem,
      do_not_match=case.get("do_not_match", ""),
    )


def _array(value: Any) -> Any:
  """Numbers as an array; anything with other text in it as it is."""
  try:
    return _numbers(value)
  except (TypeError, ValueError):
    return value


def _numbers(value: Any) -> np.ndarray:
  """Float64 array of nested lists; "nan" and "inf" are strings, None is NaN."""
  return np.asarray(np.asarray(value, dtype=object), dtype=np.float64)
