"""The list of methods, written by hand, and how one is found by name."""

import difflib

from jaxrl_llm.methods import base
from jaxrl_llm.methods.a_grae import AGrae
from jaxrl_llm.methods.adora import Adora
from jaxrl_llm.methods.aspo import Aspo
from jaxrl_llm.methods.awm import Awm
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

METHODS: dict[str, type[base.MethodConfig]] = {
  "grpo": Grpo,
  "dr_grpo": DrGrpo,
  "dapo": Dapo,
  "dynamic_sampling": DynamicSampling,
  "soft_overlong": SoftOverlong,
  "offpolicy_correction": OffPolicyCorrection,
  "decoupled_ppo": DecoupledPpo,
  "bypass": Bypass,
  "m2po": M2po,
  "opsm": Opsm,
  "rloo": Rloo,
  "reinforce_pp": ReinforcePp,
  "opo": Opo,
  "gpg": Gpg,
  "passk_advantage": PasskAdvantage,
  "gdpo": Gdpo,
  "max_rl": MaxRl,
  "rl2ml": Rl2ml,
  "canon": Canon,
  "adora": Adora,
  "progrpo": Progrpo,
  "novelty_gspo": NoveltyGspo,
  "copo": Copo,
  "remax": Remax,
  "gspo": Gspo,
  "gspo_token": GspoToken,
  "cispo": Cispo,
  "sapo": Sapo,
  "gmpo": Gmpo,
  "dual_clip": DualClip,
  "vespo": Vespo,
  "luspo": Luspo,
  "dppo": Dppo,
  "dro": Dro,
  "clip_cov": ClipCov,
  "kl_cov": KlCov,
  "ppo": Ppo,
  "kl_and_aggregation": KlAndAggregation,
  "top_entropy_mask": TopEntropyMask,
  "es_awd": EsAwd,
  "bnpo": Bnpo,
  "drpo": Drpo,
  "gcpo": Gcpo,
  "occ": Occ,
  "hdpo": Hdpo,
  "awm": Awm,
  "cme": Cme,
  "sft": Sft,
  "eksft": Eksft,
  "ngrpo": Ngrpo,
  "a_grae": AGrae,
  "hpo": Hpo,
  "pearl": Pearl,
  "aspo": Aspo,
  "verl_rank": VerlRank,
  "numca": Numca,
  "corver": Corver,
  "decs": Decs,
  "hista": Hista,
  "oisd": Oisd,
}

# Those of them that learn by gradients: what other methods can be put around.
BY_GRADIENT = {
  name: config
  for name, config in METHODS.items()
  if not issubclass(config, base.EvolutionConfig)
}

# Other names that a method is known by.
ALIASES = {
  "ppo_gae": "ppo",
  "a_hpo": "hpo",
  "ahpo": "hpo",
  "es": "es_awd",
  "evolution_strategies": "es_awd",
}


def get(name: str) -> type[base.MethodConfig]:
  """The config class of a method.

  Args:
    name: a key of METHODS or of ALIASES.

  Raises:
    ValueError: one line with the nearest of the names there are.
  """
  name = ALIASES.get(name, name)
  if name in METHODS:
    return METHODS[name]
  near = " or ".join(map(repr, _nearest(str(name))))
  hint = f" Did you mean {near}?" if near else ""
  raise ValueError(
    f"method must be one of the {len(METHODS)} that `jaxrl methods` lists;"
    f" got {name!r}.{hint}"
  )


def _nearest(name: str) -> list[str]:
  """Methods named inside it, or that it is a word of, or the most alike."""
  spelled = name.lower().replace("-", "_").strip()
  spelled = spelled.replace(".", "").replace("@", "")
  rest, inside = f"_{spelled}_", []
  for known in sorted(METHODS, key=len, reverse=True):
    if f"_{known}_" in rest:
      inside.append(known)
      rest = rest.replace(f"_{known}_", "__")
  if inside:
    return sorted(inside, key=spelled.index)
  around = [known for known in METHODS if f"_{spelled}_" in f"_{known}_"]
  if around:
    return around
  near = difflib.get_close_matches(spelled, METHODS, n=len(METHODS), cutoff=0.5)
  # Letters swapped or doubled first.
  near.sort(
    key=lambda known: (
      sorted(known) != sorted(spelled),
      set(known) != set(spelled),
    )
  )
  return near[:1]
