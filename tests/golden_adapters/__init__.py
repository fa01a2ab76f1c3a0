"""From a golden case to our public functions, one module a kind of number."""

from collections.abc import Callable
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
  key = (case.library, case.kind, case.name)
  if key not in ADAPTERS:
    raise KeyError(f"no adapter for {key}: {case}")
  return ADAPTERS[key]
