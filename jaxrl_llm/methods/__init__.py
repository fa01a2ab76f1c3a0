"""One paper, one file; METHODS lists them by hand."""

from jaxrl_llm.methods.a_grae import AGrae
from jaxrl_llm.methods.adora import Adora
from jaxrl_llm.methods.aspo import Aspo
from jaxrl_llm.methods.awm import Awm
from jaxrl_llm.methods.base import Method, MethodConfig
from jaxrl_llm.methods.bnpo import Bnpo
from jaxrl_llm.methods.bypass import Bypass
from jaxrl_llm.methods.canon import Canon
from jaxrl_llm.methods.cispo import Cispo
from jaxrl_llm.methods.clip_cov import ClipCov
from jaxrl_llm.methods.cme import Cme
from jaxrl_llm.methods.copo import Copo
from jaxrl_llm.methods.corver import Corver
from jaxrl_llm.methods.dapo import Dapo
from jaxrl_llm.methods.decoupled_ppo import DecoupledPpo
from jaxrl_llm.methods.decs import Decs
from jaxrl_llm.methods.dppo import Dppo
from jaxrl_llm.methods.dr_grpo import DrGrpo
from jaxrl_llm.methods.dro import Dro
from jaxrl_llm.methods.drpo import Drpo
from jaxrl_llm.methods.dual_clip import DualClip
from jaxrl_llm.methods.dynamic_sampling import DynamicSampling
from jaxrl_llm.methods.eksft import Eksft
from jaxrl_llm.methods.es_awd import EsAwd
from jaxrl_llm.methods.gcpo import Gcpo
from jaxrl_llm.methods.gdpo import Gdpo
from jaxrl_llm.methods.gmpo import Gmpo
from jaxrl_llm.methods.gpg import Gpg
from jaxrl_llm.methods.grpo import Grpo
from jaxrl_llm.methods.gspo import Gspo
from jaxrl_llm.methods.gspo_token import GspoToken
from jaxrl_llm.methods.hdpo import Hdpo
from jaxrl_llm.methods.hista import Hista
from jaxrl_llm.methods.hpo import Hpo
from jaxrl_llm.methods.kl_and_aggregation import KlAndAggregation
from jaxrl_llm.methods.kl_cov import KlCov
from jaxrl_llm.methods.luspo import Luspo
from jaxrl_llm.methods.m2po import M2po
from jaxrl_llm.methods.max_rl import MaxRl
from jaxrl_llm.methods.ngrpo import Ngrpo
from jaxrl_llm.methods.novelty_gspo import NoveltyGspo
from jaxrl_llm.methods.numca import Numca
from jaxrl_llm.methods.occ import Occ
from jaxrl_llm.methods.offpolicy_correction import OffPolicyCorrection
from jaxrl_llm.methods.oisd import Oisd
from jaxrl_llm.methods.opo import Opo
from jaxrl_llm.methods.opsm import Opsm
from jaxrl_llm.methods.passk_advantage import PasskAdvantage
from jaxrl_llm.methods.pearl import Pearl
from jaxrl_llm.methods.ppo_gae import Ppo
from jaxrl_llm.methods.progrpo import Progrpo
from jaxrl_llm.methods.registry import BY_GRADIENT, METHODS, get
from jaxrl_llm.methods.reinforce_pp import ReinforcePp
from jaxrl_llm.methods.remax import Remax
from jaxrl_llm.methods.rl2ml import Rl2ml
from jaxrl_llm.methods.rloo import Rloo
from jaxrl_llm.methods.sapo import Sapo
from jaxrl_llm.methods.sft import Sft
from jaxrl_llm.methods.soft_overlong import SoftOverlong
from jaxrl_llm.methods.top_entropy_mask import TopEntropyMask
from jaxrl_llm.methods.verl_rank import VerlRank
from jaxrl_llm.methods.vespo import Vespo

__all__ = [
  "BY_GRADIENT",
  "METHODS",
  "Awm",
  "AGrae",
  "Aspo",
  "Adora",
  "Bnpo",
  "Bypass",
  "Canon",
  "Cispo",
  "ClipCov",
  "Cme",
  "Copo",
  "Corver",
  "Dapo",
  "DecoupledPpo",
  "Decs",
  "Dppo",
  "DrGrpo",
  "DynamicSampling",
  "Dro",
  "Drpo",
  "DualClip",
  "Eksft",
  "EsAwd",
  "Gcpo",
  "Gdpo",
  "Gmpo",
  "Gpg",
  "Grpo",
  "Gspo",
  "GspoToken",
  "Hdpo",
  "Hpo",
  "Hista",
  "KlAndAggregation",
  "KlCov",
  "Luspo",
  "M2po",
  "MaxRl",
  "Method",
  "MethodConfig",
  "Ngrpo",
  "Numca",
  "NoveltyGspo",
  "Occ",
  "OffPolicyCorrection",
  "Oisd",
  "Opo",
  "Opsm",
  "PasskAdvantage",
  "Pearl",
  "Ppo",
  "Progrpo",
  "ReinforcePp",
  "Remax",
  "Rl2ml",
  "Rloo",
  "Sft",
  "SoftOverlong",
  "Sapo",
  "TopEntropyMask",
  "VerlRank",
  "Vespo",
  "get",
]
