"""One paper, one file; METHODS lists them by hand."""

from jaxrl_llm.methods.base import Method, MethodConfig
from jaxrl_llm.methods.dapo import Dapo
from jaxrl_llm.methods.dr_grpo import DrGrpo
from jaxrl_llm.methods.grpo import Grpo
from jaxrl_llm.methods.registry import METHODS, get

__all__ = [
  "METHODS",
  "Dapo",
  "DrGrpo",
  "Grpo",
  "Method",
  "MethodConfig",
  "get",
]
