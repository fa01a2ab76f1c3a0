"""Cases of HPO: advantages, A-HPO's alpha, losses with it and constants."""

import jax.numpy as jnp

from golden_adapters import groups
from jaxrl_llm.advantages import group, reshaping
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import surrogates, weighting

_CONSTANT = "loss_hpo_alpha_"


def adapt(case, dtype) -> dict:
  """What the case asks for, by its names."""
  advantages = group.group_normalized(
    case.array("rewards", dtype),
    group_size=groups.group_size(case),
    ddof=case.params.get("adv_std_ddof", 1),
    eps=case.params.get("adv_eps", 1e-6),
  )
  alpha = reshaping.positive_per_negative(
    advantages, alpha_min=case.params.get("alpha_min", 0.1)
  )
  found = {"advantages": advantages, "alpha": alpha}
  if groups.has_logprobs(case):
    found["loss_ahpo"] = _loss(case, dtype, advantages, alpha)
  for name in case.outputs:
    if name.startswith(_CONSTANT):
      constant = float(name.removeprefix(_CONSTANT))
      found[name] = _loss(case, dtype, advantages, constant)
  return groups.asked(case, found)


def _loss(case, dtype, advantages, alpha):
  logprobs, old = groups.logprobs(case, dtype)
  mask, (low, high) = groups.mask(case), groups.clips(case, 0.2, 0.2)
  credit = reshaping.hysteretic(advantages, alpha=alpha)
  losses, _ = surrogates.clipped_surrogate(
    logprobs - old,
    base.per_token(credit, mask),
    clip_low=low,
    clip_high=high,
  )
  return (weighting.token_mean(mask, jnp.ones(len(mask), dtype)) * losses).sum()
