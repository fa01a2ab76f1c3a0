"""From a golden case to our public functions.

Of the peers' files one module a kind of number; of the file of one method the
module of its name, whose adapt() takes every case of it.
"""

from collections.abc import Callable
import importlib
from typing import Any

from golden_adapters import (
  advantages,
  correction,
  kl,
  other_losses,
  rewards,
  trl_losses,
  values,
  verl_losses,
)
from jaxrl_llm.testing import golden

# (case, dtype) -> outputs by the names of case.outputs. Every output must be
# there, but of "metrics" only those that we have too.
Adapter = Callable[[golden.Case, str], dict[str, Any]]

_MODULES = (
  advantages,
  correction,
  kl,
  other_losses,
  rewards,
  trl_losses,
  values,
  verl_losses,
)

# (library, kind, name) -> adapter.
ADAPTERS: dict[tuple[str, str, str], Adapter] = {
  key: adapter
  for module in _MODULES
  for key, adapter in module.ADAPTERS.items()
}


def find(case: golden.Case) -> Adapter:
  """The adapter of a case; a KeyError for one that nobody knows."""
  if not case.slug.startswith("peers_"):
    return _module(case.slug).adapt
  key = (case.library, case.kind, case.name)
  if key not in ADAPTERS:
    raise KeyError(f"no adapter for {key}: {case}")
  return ADAPTERS[key]


def precision(case: golden.Case, output: str) -> dict[str, float]:
  """How closely an output is to be compared where its file printed less.

  A method's module says so in PRECISION: {output: {"rtol": ..., "atol": ...}}.
  """
  if case.slug.startswith("peers_"):
    return {}
  return getattr(_module(case.slug), "PRECISION", {}).get(output, {})


def _module(slug: str):
  try:
    return importlib.import_module(f"golden_adapters.{slug}")
  except ModuleNotFoundError:
    raise KeyError(f"no module golden_adapters/{slug}.py") from None
