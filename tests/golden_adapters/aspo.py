"""Cases of ASPO: the bonus on given advantages."""

from golden_adapters import groups
from jaxrl_llm.advantages import reshaping


def adapt(case, dtype) -> dict:
  """Advantages [N]."""
  eligible = (case.array("correct") > 0) & (case.array("used_code") > 0)
  advantages = reshaping.position_shaped(
    case.array("base_adv", dtype),
    case.array("first_code_pos", dtype),
    case.array("length", dtype),
    eligible,
    group_size=groups.group_size(case),
    delta=case.params.get("delta", -2.0),
    k=case.params.get("k", 0.7),
  )
  return groups.asked(case, {"advantages": advantages})
