"""What the shared test of pallas_kernels runs: one file an op, one OP a file.

A problem is built from a dtype and the knobs of a case. Its function takes the
name of an implementation ("auto" too: lowering_test.py) and the differentiable
inputs, and gives float arrays; whatever else it needs (targets, masks) is
closed over as NumPy arrays, so that the reference can run the same problem in
float64.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import numpy as np

# Largest error of values and gradients over the largest entry. bfloat16 has 8
# bits and rounds only gradients; values accumulate in float32.
TOLERANCE = {"float32": (2e-6, 5e-6), "bfloat16": (2e-6, 8e-3)}


class Problem(NamedTuple):
  """One case of an op.

  Attributes:
    function: function(impl, *inputs) -> tuple of float arrays.
    inputs: what is differentiated, already rounded to the dtype of the case;
      empty if the op has no gradient.
  """

  function: Callable[..., tuple]
  inputs: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
  """An op, its implementations and its cases.

  Attributes:
    name: folder in pallas_kernels.
    impls: what is compared with impl="reference" in float64: names for
      impl, or any word that the problem's function understands.
    cases: {name: knobs}.
    problem: problem(dtype, **knobs) -> Problem, dtype a NumPy-style name.
    dtypes: names of dtypes.
    skip: {(impl, case): reason} for what an implementation refuses; the shared
      test checks that it does refuse.
    tolerance: {dtype: (values, gradients)}.
  """

  name: str
  impls: tuple[str, ...]
  cases: Mapping[str, Mapping[str, Any]]
  problem: Callable[..., Problem]
  dtypes: tuple[str, ...] = ("float32", "bfloat16")
  skip: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
  tolerance: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=lambda: TOLERANCE
  )
