"""Cases of CME: the reward of given log-probs, and its z-score in groups."""

import jax.numpy as jnp

from jaxrl_llm.advantages import group
from jaxrl_llm.models import likelihood


def adapt(case, dtype):
  """A row without tokens has the raw 0 here, no floor."""
  params = case.params
  rewards = likelihood.mean_logprob(
    case.array("verifier_logprobs", dtype), jnp.asarray(case.inputs["mask"] > 0)
  )
  advantages = group.group_normalized(
    rewards,
    group_size=int(params.get("G", len(rewards))),
    ddof=params.get("adv_std_ddof", 1),
    eps=params.get("adv_eps", 1e-6),
  )
  found = {"reward": rewards, "advantages": advantages}
  return {name: found[name] for name in case.outputs}
