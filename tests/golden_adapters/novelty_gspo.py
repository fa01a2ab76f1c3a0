"""The novelty bonus: perplexity, novelty, shaped reward, advantages."""

import jax.numpy as jnp

from jaxrl_llm.advantages import group
from jaxrl_llm.testing import rollouts
from jaxrl_llm.transforms import novelty


def adapt(case, dtype):
  """Every output that the case asks for."""
  params, rewards = case.params, case.array("rewards", dtype)
  size = int(params.get("G", 4))
  logprobs = case.array("ref_logprobs", dtype)
  mask = jnp.asarray(case.inputs["mask"] > 0)
  kind = str(params.get("kind", "rank")).split()[0]
  most = params.get("lp_max", params.get("most", 3.0))
  coef = params.get("lambda", params.get("lam", 0.2))
  surprise = novelty.log_perplexity(logprobs, mask)
  knobs = {"kind": kind, "most": most}
  transform = novelty.novelty_bonus(
    coef=coef, on_solved=params.get("bonus_on_solved", True), **knobs
  )
  rollout = rollouts.make_rollout(groups=len(rewards)).replace(
    rewards=rewards,
    ref_logprobs=logprobs,
    mask=mask,
    weights=jnp.ones(len(rewards)),
    group_size=size,
  )
  shaped, _ = transform.update(rollout, transform.init())
  found = {
    "ref_ppl": jnp.exp(surprise),
    "log_ppl": surprise,
    "novelty": novelty.novelty(
      surprise, rewards > 0.5, group_size=size, **knobs
    ),
    "shaped_reward": shaped.rewards,
  }
  if size > 1:
    found["advantages"] = group.group_normalized(
      shaped.rewards, group_size=size, eps=params.get("eps", 1e-6)
    )
  return {name: found[name] for name in case.outputs}
