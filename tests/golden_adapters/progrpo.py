"""ProGRPO: confidences, and the advantages that they shift."""

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import confidence, group


def adapt(case, dtype):
  """Every output that the case asks for."""
  params, rewards = case.params, case.array("rewards", dtype)
  size = int(params.get("G", 4))
  fraction = params.get("low_frac", 0.2)
  name = "logprobs" if "logprobs" in case.inputs else "old_logprobs"
  sure = confidence.low_probability_confidence(
    case.array(name, dtype),
    jnp.asarray(case.inputs["mask"] > 0),
    fraction=fraction,
  )
  prompt = jnp.repeat(_prompt_confidence(case, dtype, fraction), size)
  sample = "sample" in str(params.get("std", "population"))
  advantages = group.group_normalized(
    rewards,
    group_size=size,
    ddof=int(sample),
    eps=params.get("delta", 1e-6),
  )
  found = {
    "adv_grpo": advantages,
    "answer_confidence": sure,
    "prompt_confidence": prompt[::size],
    "adv": confidence.confidence_shifted(
      advantages,
      rewards > 0,
      prompt,
      sure,
      group_size=size,
      alpha=params.get("alpha", 0.3),
      skip_all_correct=params.get("skip_all_correct", False),
      correct_only=params.get("correct_only", False),
    ),
  }
  return {name: found[name] for name in case.outputs}


def _prompt_confidence(case, dtype, fraction):
  """[B], given or made of the prompts' log-probs and the mask beside them."""
  if "prompt_confidence" in case.inputs:
    return case.array("prompt_confidence", dtype)
  logprobs = case.array("prompt_logprobs", dtype)
  mask = case.inputs.get("prompt_mask", np.ones(logprobs.shape))
  return confidence.low_probability_confidence(
    logprobs, jnp.asarray(mask > 0), fraction=fraction
  )
