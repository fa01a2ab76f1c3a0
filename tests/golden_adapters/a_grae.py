"""Cases of A-GRAE: both factors for easy prompts, and what they reshape."""

from golden_adapters import groups
from jaxrl_llm.advantages import group, reshaping

_FACTORS = {
  "advantages_code_variant": "code",
  "advantages_paper_variant_worked_by_us": "paper",
  "advantages_paper_variant": "paper",
  "advantages": "paper",
}


def adapt(case, dtype) -> dict:
  """What the case asks for, by its names."""
  rewards, size = case.array("rewards", dtype), groups.group_size(case)
  eps = case.params.get("eps", 1e-6)
  if case.params.get("norm_by_std", True):
    plain = group.group_normalized(rewards, group_size=size, eps=eps)
  else:
    plain = group.group_centred(rewards, group_size=size)
  found = {"plain_grpo": plain}
  for name, factor in _FACTORS.items():
    found[name] = reshaping.difficulty_reshaped(
      plain,
      rewards,
      group_size=size,
      alpha=case.params.get("alpha", 1.0),
      easy_factor=case.params.get("easy_factor", factor),
      eps=eps,
    )
  return groups.asked(case, found)
