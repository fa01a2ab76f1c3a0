"""Cases of NGRPO: the advantage, by row and by token, and the clipped loss."""

import jax.numpy as jnp

from golden_adapters import groups
from jaxrl_llm.advantages import baselines
from jaxrl_llm.methods import base
from jaxrl_llm.objectives import surrogates, weighting


def adapt(case, dtype) -> dict:
  """What the case asks for, by its names."""
  found = {}
  if "rewards" in case.inputs:
    rows = baselines.virtual_normalized(
      case.array("rewards", dtype),
      group_size=groups.group_size(case),
      r_max=case.params.get("r_max", 1.0),
      n_virtual=case.params.get("n_virtual", 1),
      eps=case.params.get("eps", 1e-6),
    )
    found |= {"advantages_N": rows, "advantages": rows}
    if "mask" in case.inputs:
      found["advantages_NT"] = base.per_token(rows, groups.mask(case))
  if groups.has_logprobs(case):
    found |= _loss(case, dtype, found.get("advantages_NT"))
  return groups.asked(case, found)


def _loss(case, dtype, advantages) -> dict:
  mask = groups.mask(case)
  logprobs, old = groups.logprobs(case, dtype)
  if "advantages" in case.inputs:
    advantages = case.array("advantages", dtype)
  low, high = groups.clips(case, 0.16, 0.24)
  losses, clipped = surrogates.clipped_surrogate(
    logprobs - old,
    base.per_token(advantages, mask),
    clip_low=low,
    clip_high=high,
  )
  weights = weighting.token_mean(mask, jnp.ones(len(mask), dtype))
  loss = (weights * losses).sum()
  share = sum((weights * x).sum() for x in clipped.values())
  names = "loss", "pg_loss", "policy_loss"
  shares = "clip_fraction", "clipfrac", "pg_clipfrac"
  found = dict.fromkeys(names, loss) | dict.fromkeys(shares, share)
  return found | {"ppo_kl": (weights * (old - logprobs)).sum()}
