"""Our functions against numbers made by running other people's code.

Every case of every JSON file in tests/golden, or in the folder that the
environment variable JAXRL_GOLDEN names, in float32 and float64, values and
gradients. A case without an adapter fails.
"""

import os
import pathlib
import re

import golden_adapters
import jax
import numpy as np
import pytest

from jaxrl_llm.testing import golden

FOLDER = pathlib.Path(
  os.environ.get("JAXRL_GOLDEN") or pathlib.Path(__file__).parent / "golden"
)
FILES = sorted(FOLDER.glob("*.json"))
# What a file may say of precision, and what holds where it says nothing; an
# absolute 1e-6 goes with float32.
_STATED = re.compile(
  r"rtol (\S+?)/atol (\S+) in float64, (\S+) in float32"
  r" \(cases that say float32: ([^)\s]+)\)"
)


def _cases():
  for path in FILES:
    for index, case in enumerate(golden.load(path)):
      for dtype in ("float32", "float64"):
        name = f"{path.stem}-{index}-{case.kind}-{case.name}-{dtype}"
        yield pytest.param(case, dtype, id=name)


def test_there_is_something_to_compare():
  assert FILES, f"{FOLDER} holds no .json file"


@pytest.mark.parametrize(("case", "dtype"), _cases())
def test_case(case, dtype):
  adapter = golden_adapters.find(case)
  with jax.enable_x64(dtype == "float64"):
    ours = jax.tree.map(np.asarray, adapter(case, dtype))
  metrics = {f"metrics/{k}": v for k, v in ours.pop("metrics", {}).items()}
  theirs = {k: v for k, v in case.outputs.items() if k != "metrics"}
  ours, theirs = _flat(ours), _flat(theirs)
  assert ours.keys() == theirs.keys()
  for name in metrics:
    theirs[name] = case.outputs["metrics"][name.removeprefix("metrics/")]
  for name, value in (ours | metrics).items():
    tolerance = _tolerance(case, dtype) | golden_adapters.precision(case, name)
    try:
      golden.assert_close(value, theirs[name], **tolerance)
    except AssertionError as error:
      if case.do_not_match:
        continue
      raise AssertionError(f"{case}: {name}: {error}") from None
    assert not case.do_not_match, f"{case}: {name} must differ"


def _flat(outputs, prefix=""):
  """Of dicts in dicts one, with names "outer/inner"."""
  flat = {}
  for name, value in outputs.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}/")
    else:
      flat[prefix + name] = value
  return flat


def _tolerance(case, dtype):
  stated = _STATED.search(case.conventions)
  values = stated.groups() if stated else ("1e-6", "1e-7", "1e-4", "1e-5")
  fine, absolute, coarse, inside = map(float, values)
  if dtype == "float32":
    return {"rtol": coarse, "atol": 1e-6}
  if "float32" in str(case.params):
    return {"rtol": inside, "atol": 1e-6}
  return {"rtol": fine, "atol": absolute}
