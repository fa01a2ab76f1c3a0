"""One paper, one file; METHODS lists them by hand."""

from jaxrl_llm.methods.base import Method, MethodConfig
from jaxrl_llm.methods.bypass import Bypass
from jaxrl_llm.methods.dapo import Dapo
from jaxrl_llm.methods.decoupled_ppo import DecoupledPpo
from jaxrl_llm.methods.dr_grpo import DrGrpo
from jaxrl_llm.methods.gdpo import Gdpo
from jaxrl_llm.methods.gpg import Gpg
from jaxrl_llm.methods.grpo import Grpo
from jaxrl_llm.methods.m2po import M2po
from jaxrl_llm.methods.max_rl import MaxRl
from jaxrl_llm.methods.offpolicy_correction import OffPolicyCorrection
from jaxrl_llm.methods.opo import Opo
from jaxrl_llm.methods.opsm import Opsm
from jaxrl_llm.methods.passk_advantage import PasskAdvantage
from jaxrl_llm.methods.registry import METHODS, get
from jaxrl_llm.methods.reinforce_pp import ReinforcePp
from jaxrl_llm.methods.rloo import Rloo

__all__ = [
  "METHODS",
  "Bypass",
  "Dapo",
  "DecoupledPpo",
  "DrGrpo",
  "Gdpo",
  "Gpg",
  "Grpo",
  "M2po",
  "MaxRl",
  "Method",
  "MethodConfig",
  "OffPolicyCorrection",
  "Opo",
  "Opsm",
  "PasskAdvantage",
  "ReinforcePp",
  "Rloo",
  "get",
]
