"""One paper, one file; METHODS lists them by hand."""

from jaxrl_llm.methods.base import Method, MethodConfig
from jaxrl_llm.methods.bypass import Bypass
from jaxrl_llm.methods.dapo import Dapo
from jaxrl_llm.methods.decoupled_ppo import DecoupledPpo
from jaxrl_llm.methods.dr_grpo import DrGrpo
from jaxrl_llm.methods.grpo import Grpo
from jaxrl_llm.methods.m2po import M2po
from jaxrl_llm.methods.offpolicy_correction import OffPolicyCorrection
from jaxrl_llm.methods.opsm import Opsm
from jaxrl_llm.methods.registry import METHODS, get

__all__ = [
  "METHODS",
  "Bypass",
  "Dapo",
  "DecoupledPpo",
  "DrGrpo",
  "Grpo",
  "M2po",
  "Method",
  "MethodConfig",
  "OffPolicyCorrection",
  "Opsm",
  "get",
]
